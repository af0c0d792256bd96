"""Bytes that go into images, volumes and the object store come out as they were, from one cloud into the other too."""

from __future__ import annotations

import hashlib
import io
import os
from typing import Any

import pytest

from testbed.openstack import contents
from testbed.openstack.layout import Bed
from tests.parts.openstack.conftest import connect
from tests.parts.openstack.site import Site, fresh, until

pytestmark = pytest.mark.acceptance


def volume_is(site: Site, volume: Any, status: str) -> Any:
    def look() -> Any:
        seen = site.member.block_storage.get_volume(volume.id)
        assert seen.status != "error" or status == "error", f"{seen.name} is in error"
        return seen if seen.status == status else None

    return until(f"the volume is {status}", look)


def volume_gone(site: Site, volume: Any) -> None:
    site.member.block_storage.delete_volume(volume, ignore_missing=True)
    until("the volume is gone", lambda: site.member.block_storage.find_volume(volume.id) is None)


def test_volume_attached_and_grown(site: Site) -> None:
    volume = site.member.block_storage.create_volume(name=fresh("volume"), size=1, volume_type="standard")
    volume_is(site, volume, "available")
    with site.server() as server:
        site.member.compute.create_volume_attachment(server, volume_id=volume.id)
        assert volume_is(site, volume, "in-use").attachments[0]["server_id"] == server.id
        site.member.compute.delete_volume_attachment(server, volume.id)
        volume_is(site, volume, "available")
    site.member.block_storage.extend_volume(volume, 3)
    until("it has grown", lambda: site.member.block_storage.get_volume(volume.id).size == 3)
    volume_is(site, volume, "available")
    site.member.block_storage.retype_volume(volume, "fast", migration_policy="on-demand")
    until("it is of the other type", lambda: site.member.block_storage.get_volume(volume.id).volume_type == "fast")
    volume_gone(site, volume)


def test_a_snapshot_becomes_a_volume(site: Site) -> None:
    storage = site.member.block_storage
    volume = storage.create_volume(name=fresh("volume"), size=1)
    volume_is(site, volume, "available")
    snapshot = storage.create_snapshot(volume_id=volume.id, name=fresh("snapshot"))
    until("the snapshot is there", lambda: storage.get_snapshot(snapshot.id).status == "available")
    copy = storage.create_volume(name=fresh("copy"), size=2, snapshot_id=snapshot.id)
    assert volume_is(site, copy, "available").size == 2
    volume_gone(site, copy)
    storage.delete_snapshot(snapshot)
    until("the snapshot is gone", lambda: storage.find_snapshot(snapshot.id) is None)
    volume_gone(site, volume)


def test_an_image_keeps_its_bytes(site: Site) -> None:
    data = os.urandom(3 * 1024 * 1024)
    image = site.member.image.create_image(
        name=fresh("image"), data=io.BytesIO(data), disk_format="raw", container_format="bare", wait=True
    )
    image = site.member.image.get_image(image.id)
    assert (image.size, image.hash_algo) == (len(data), "sha512")
    assert image.hash_value == hashlib.sha512(data).hexdigest()
    assert hashlib.sha512(site.member.image.download_image(image).content).hexdigest() == image.hash_value
    site.member.image.delete_image(image)


def test_a_volume_is_made_from_an_image_and_back(site: Site) -> None:
    """The bytes of an image are those at the beginning of the volume, and of the image that is made of it."""
    wanted = contents.image_bytes("debian-12")
    volume = site.member.block_storage.create_volume(name=fresh("volume"), size=1, image_id=site.image().id)
    volume_is(site, volume, "available")
    made = site.member.block_storage.upload_volume_to_image(volume, fresh("from-volume"), disk_format="raw")
    image = until("the image is active", lambda: _active(site, made["image_id"]))
    assert image.size == 1024**3
    answer = site.member.image.download_image(image, stream=True)
    assert next(answer.iter_content(len(wanted))) == wanted
    answer.close()
    volume_is(site, volume, "available")
    volume_gone(site, volume)
    site.member.image.delete_image(image)


def _active(site: Site, image_id: str) -> Any:
    found = site.member.image.get_image(image_id)
    return found if found.status == "active" else None


def test_an_image_goes_from_one_cloud_to_the_other(bed: Bed) -> None:
    north, south = connect(bed, "north"), connect(bed, "south")
    try:
        there = north.image.find_image("rocky-9", ignore_missing=False)
        data = north.image.download_image(there).content
        here = south.image.create_image(
            name=fresh("moved"), data=io.BytesIO(data), disk_format="raw", container_format="bare", wait=True
        )
        assert south.image.get_image(here.id).hash_value == north.image.get_image(there.id).hash_value
        south.image.delete_image(here)
    finally:
        north.close()
        south.close()


def test_objects(bed: Bed) -> None:
    """Only one of the clouds has an object store, and only its catalogue says so."""
    north, south = connect(bed, "north"), connect(bed, "south")
    try:
        assert not north.has_service("object-store")
        assert north.service_catalog is not None
        assert "object-store" not in {entry["type"] for entry in north.service_catalog}
        store, data, name = south.object_store, os.urandom(100_000), fresh("container")
        store.create_container(name)
        store.upload_object(container=name, name="a/b c", data=data)
        assert store.download_object("a/b c", container=name) == data
        assert [o.name for o in store.objects(name)] == ["a/b c"]
        store.delete_object("a/b c", container=name)
        store.delete_container(name)
    finally:
        north.close()
        south.close()
