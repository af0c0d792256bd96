"""A hypervisor without guests for nova-compute: Nova's own fake, put right where it differs from a real one.

Loaded as `nova.virt.hypervisor`. Faults come from outside, from `faults.json` in the state directory of the host, which
is read at every call: {"spawn": "fail", "power_off": 3.5} makes one call fail and another take that many seconds; the
waiting ends early when the fault is taken away.
"""

import functools
import hashlib
import io
import json
import os
import threading
import time

import nova.conf
from nova import exception
from nova.compute import power_state, task_states
from nova.image import glance
from nova.virt import fake
from oslo_config import cfg

CONF = nova.conf.CONF
CONF.register_opts([cfg.IntOpt("vcpus"), cfg.IntOpt("memory_mb"), cfg.IntOpt("disk_gb")], group="testbed")

CALLS = (
    *("spawn", "destroy", "cleanup", "reboot", "power_on", "power_off", "pause", "unpause", "suspend", "resume"),
    *("rescue", "unrescue", "snapshot", "attach_volume", "detach_volume", "extend_volume"),
    *("attach_interface", "detach_interface", "migrate_disk_and_power_off", "finish_migration", "confirm_migration"),
    *("finish_revert_migration", "pre_live_migration", "live_migration", "post_live_migration_at_destination"),
)
"""Calls of Nova that a fault can be set for, by the names of nova.virt.driver.ComputeDriver."""
DISK_BYTES = 64 * 1024
"""Of a snapshot: enough to have a checksum of its own."""


class Hypervisor(fake.FakeDriverWithoutFakeNodes):
    """Its node keeps its identity over a restart, unlike that of the plain fake, which Nova would take for another."""

    def __init__(self, virtapi, read_only=False):
        self.vcpus, self.memory_mb, self.local_gb = CONF.testbed.vcpus, CONF.testbed.memory_mb, CONF.testbed.disk_gb
        super().__init__(virtapi, read_only)
        self._writing = threading.Lock()

    # ---------------------------------------------------------------------- guests outlive nova-compute

    @property
    def _guests(self):
        return os.path.join(CONF.state_path, "guests.json")

    def init_host(self, host):
        super().init_host(host)
        try:
            with open(self._guests) as file:
                known = json.load(file)
        except FileNotFoundError:
            return
        for uuid, guest in known.items():
            self.instances[uuid] = fake.FakeInstance(guest["name"], guest["state"], uuid)

    def remember(self):
        with self._writing:
            known = {uuid: {"name": g.name, "state": g.state} for uuid, g in dict(self.instances).items()}
            with open(f"{self._guests}.new", "w") as file:
                json.dump(known, file)
            os.replace(f"{self._guests}.new", self._guests)

    # ---------------------------------------------------------------------- faults

    def fault(self, call):
        """Fail or wait, if the file says so."""
        began = time.monotonic()
        while (wanted := self._wanted(call)) is not None:
            if not isinstance(wanted, int | float):
                raise exception.NovaException(f"the test bed lets {call} fail")
            if time.monotonic() - began >= wanted:
                return
            time.sleep(min(0.1, wanted))

    def _wanted(self, call):
        try:
            with open(os.path.join(CONF.state_path, "faults.json")) as file:
                return json.load(file).get(call)
        except FileNotFoundError:
            return None

    # ---------------------------------------------------------------------- what the plain fake gets wrong

    def pause(self, instance):
        self._set(instance, power_state.PAUSED)

    def unpause(self, instance):
        self._set(instance, power_state.RUNNING)

    def migrate_disk_and_power_off(self, context, instance, *args, **kwargs):
        self._set(instance, power_state.SHUTDOWN)
        return super().migrate_disk_and_power_off(context, instance, *args, **kwargs)

    def _set(self, instance, state):
        if instance.uuid not in self.instances:
            raise exception.InstanceNotFound(instance_id=instance.uuid)
        self.instances[instance.uuid].state = state

    def post_live_migration(self, context, instance, block_device_info, migrate_data=None):
        # Upstream keeps the guest on its source, which then refuses to have it back by an evacuation.
        self.destroy(context, instance, network_info=None, block_device_info=block_device_info)

    def attach_interface(self, context, instance, image_meta, vif):
        # Upstream never forgets the interface of a deleted guest and refuses its port to the next one.
        self._interfaces[vif["id"]] = vif

    def detach_interface(self, context, instance, vif):
        self._interfaces.pop(vif["id"], None)

    def snapshot(self, context, instance, image_id, update_task_state):
        # Upstream uploads nothing: the image would stay queued for ever.
        if instance.uuid not in self.instances:
            raise exception.InstanceNotRunning(instance_id=instance.uuid)
        update_task_state(task_state=task_states.IMAGE_PENDING_UPLOAD)
        update_task_state(task_state=task_states.IMAGE_UPLOADING, expected_state=task_states.IMAGE_PENDING_UPLOAD)
        image = glance.API()
        described = image.get(context, image_id) | {"disk_format": "raw", "container_format": "bare"}
        image.update(context, image_id, described, io.BytesIO(self._disk(instance, image_id)), purge_props=False)

    @staticmethod
    def _disk(instance, image_id):
        seed = hashlib.sha256(f"{instance.uuid} {image_id}".encode()).digest()
        return seed * (DISK_BYTES // len(seed))

    def get_console_output(self, context, instance):
        lines = [f"[{number:4d}.000000] {instance.hostname}: line {number} of the console" for number in range(40)]
        return "\n".join([*lines, f"{instance.hostname} login: "])


def _with_faults(name, call):
    @functools.wraps(call)
    def made(self, *args, **kwargs):
        self.fault(name)
        try:
            return call(self, *args, **kwargs)
        finally:
            self.remember()

    return made


for _name in CALLS:
    setattr(Hypervisor, _name, _with_faults(_name, getattr(Hypervisor, _name)))
