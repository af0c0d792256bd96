"""A volume driver for Cinder that keeps each volume and snapshot as a sparse file, so that their bytes are real.

Nothing is exported and nothing can be mounted: the hypervisors have no guests. Images are copied in and out, so what
goes through a volume can be compared by checksum.
"""

import os
import shutil
import subprocess

from cinder import interface
from cinder.volume import driver, volume_utils
from oslo_config import cfg

OPTIONS = [cfg.StrOpt("testbed_volumes_dir", help="Where the files lie.")]
GIB = 1024**3


@interface.volumedriver
class FileDriver(driver.VolumeDriver):
    """One pool, as large as anybody asks for."""

    VERSION = "1.0"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.configuration.append_config_values(OPTIONS)
        self._folder = self.configuration.testbed_volumes_dir

    @staticmethod
    def get_driver_options():
        return OPTIONS

    def check_for_setup_error(self):
        os.makedirs(self._folder, mode=0o700, exist_ok=True)

    def _path(self, thing):
        return os.path.join(self._folder, thing["name"])

    def _grow(self, volume, size):
        with open(self._path(volume), "ab") as file:
            file.truncate(size * GIB)

    def _copy(self, source, target):
        subprocess.run(["cp", "--sparse=always", self._path(source), self._path(target)], check=True)

    # ---------------------------------------------------------------------- volumes and snapshots

    def create_volume(self, volume):
        self._grow(volume, volume["size"])

    def delete_volume(self, volume):
        self._remove(volume)

    def extend_volume(self, volume, new_size):
        self._grow(volume, new_size)

    def create_cloned_volume(self, volume, src_vref):
        self._copy(src_vref, volume)
        self._grow(volume, volume["size"])

    def create_snapshot(self, snapshot):
        self._copy(snapshot["volume"], snapshot)

    def delete_snapshot(self, snapshot):
        self._remove(snapshot)

    def create_volume_from_snapshot(self, volume, snapshot):
        self._copy(snapshot, volume)
        self._grow(volume, volume["size"])

    def revert_to_snapshot(self, context, volume, snapshot):
        self._copy(snapshot, volume)
        self._grow(volume, volume["size"])

    def retype(self, context, volume, new_type, diff, host):
        """All types lie in the same pool: there is nothing to move."""
        return True, None

    def _remove(self, thing):
        if os.path.exists(self._path(thing)):
            os.unlink(self._path(thing))

    # ---------------------------------------------------------------------- images

    def clone_image(self, context, volume, image_location, image_meta, image_service):
        """Takes every image, so that Cinder needs no qemu-img to look at it. Only raw ones come out as they went in."""
        with open(self._path(volume), "wb") as file:
            image_service.download(context, image_meta["id"], file)
        self._grow(volume, volume["size"])
        return {}, True

    def copy_volume_to_image(self, context, volume, image_service, image_meta):
        volume_utils.upload_volume(context, image_service, image_meta, self._path(volume), volume)

    # ---------------------------------------------------------------------- connections

    def ensure_export(self, context, volume):
        pass

    def create_export(self, context, volume, connector):
        pass

    def remove_export(self, context, volume):
        pass

    def initialize_connection(self, volume, connector, **kwargs):
        return {"driver_volume_type": "fake", "data": {"access_mode": "rw"}}

    def terminate_connection(self, volume, connector, **kwargs):
        pass

    def _update_volume_stats(self):
        free = shutil.disk_usage(self._folder).free // GIB
        pool = {
            "pool_name": "files",
            "total_capacity_gb": "infinite",
            "free_capacity_gb": "infinite",
            "allocated_capacity_gb": 0,
            "reserved_percentage": 0,
            "multiattach": True,
            "thin_provisioning_support": True,
            "max_over_subscription_ratio": 1000,
            "provisioned_capacity_gb": 0,
            "QoS_support": False,
        }
        self._stats = {
            "volume_backend_name": self.configuration.volume_backend_name,
            "vendor_name": "Ground Control",
            "driver_version": self.VERSION,
            "storage_protocol": "file",
            "really_free_gb": free,
            "pools": [pool],
        }
