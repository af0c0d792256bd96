"""The configuration files of the OpenStack services of a cloud, as values and as text."""

from __future__ import annotations

from pathlib import Path

from testbed.openstack.layout import HERE, LOCAL, Cloud

Section = dict[str, object]
Settings = dict[str, Section]

DATABASES = ("keystone", "placement", "glance", "nova_api", "nova", "nova_cell0", "neutron", "cinder")
SERVICE_USERS = ("placement", "glance", "nova", "neutron", "cinder", "swift")

HOST_VCPUS, HOST_MEMORY_MB, HOST_DISK_GB = 256, 1024 * 1024, 100_000
"""What each hypervisor says it has: enough for a thousand small servers in a cloud."""


def text(settings: Settings) -> str:
    """As an INI file; True and False as OpenStack writes them."""
    lines = []
    for name, section in settings.items():
        lines.append(f"[{name}]")
        for key, value in section.items():
            lines.append(f"{key} = {str(value).lower() if isinstance(value, bool) else value}")
        lines.append("")
    return "\n".join(lines)


def joined(*parts: Settings) -> Settings:
    """Later sections add to and replace what stands in earlier ones."""
    result: Settings = {}
    for part in parts:
        for name, section in part.items():
            result[name] = {**result.get(name, {}), **section}
    return result


def database_url(cloud: Cloud, name: str) -> str:
    password, socket = cloud.passwords["database"], cloud.socket("mariadb")
    return f"mysql+pymysql://openstack:{password}@localhost/{name}?unix_socket={socket}&charset=utf8mb3"


def messages_url(cloud: Cloud) -> str:
    return f"rabbit://openstack:{cloud.passwords['messages']}@{LOCAL}:{cloud.own_port('amqp')}//"


def packaged(cloud: Cloud, name: str) -> Path:
    """A file that came with a service: etc/ of the environment."""
    return cloud.environment / "etc" / name


def credentials(cloud: Cloud, user: str) -> Section:
    """How one service shows another who it is."""
    return {
        "auth_type": "password",
        "auth_url": f"{cloud.internal('identity')}/v3",
        "username": user,
        "password": cloud.passwords["service"],
        "project_name": "service",
        "user_domain_name": "Default",
        "project_domain_name": "Default",
        "region_name": cloud.region,
        "valid_interfaces": "internal",
    }


def _program(cloud: Cloud, name: str, host: str | None = None) -> Settings:
    """What every program has. They log to standard error, which goes to the log of the part."""
    return {
        "DEFAULT": {
            "use_stderr": True,
            "host": host or f"{cloud.name}-control",
            "state_path": cloud.state / (host or name),
            "transport_url": messages_url(cloud),
        },
        "oslo_concurrency": {"lock_path": cloud.state / "locks"},
        "oslo_messaging_notifications": {"driver": "noop"},
        "oslo_messaging_rabbit": {"heartbeat_in_pthread": False, "kombu_reconnect_delay": 0.5},
    }


def _service(cloud: Cloud, user: str, database: str, section: str = "database") -> Settings:
    """What has a database and is called with tokens."""
    caller = credentials(cloud, user)
    return {
        section: {"connection": database_url(cloud, database), "max_pool_size": 5, "max_overflow": 20},
        "keystone_authtoken": {
            **{k: v for k, v in caller.items() if k != "valid_interfaces"},
            "interface": "internal",
            "www_authenticate_uri": f"{cloud.public('identity')}/v3",
            "service_token_roles": "service",
            "service_token_roles_required": True,
        },
        "service_user": {"send_service_user_token": True, **caller},
    }


def keystone(cloud: Cloud) -> Settings:
    keys = cloud.etc / "keystone"
    return joined(
        _program(cloud, "keystone"),
        {
            "database": {"connection": database_url(cloud, "keystone"), "max_pool_size": 5},
            "token": {"provider": "fernet", "expiration": 14400},
            "fernet_tokens": {"key_repository": keys / "fernet"},
            # Receipts have a setting of their own and complain at every log-in without it.
            "fernet_receipts": {"key_repository": keys / "fernet"},
            "credential": {"key_repository": keys / "credential"},
            "identity": {"password_hash_rounds": 4},
            "cache": {"enabled": True, "backend": "dogpile.cache.memory"},
        },
    )


def placement(cloud: Cloud) -> Settings:
    program = _program(cloud, "placement")
    del program["DEFAULT"]["transport_url"]
    return joined(program, _service(cloud, "placement", "placement", "placement_database"))


def glance(cloud: Cloud) -> Settings:
    return joined(
        _program(cloud, "glance"),
        _service(cloud, "glance", "glance"),
        {
            "DEFAULT": {"enabled_backends": "files:file"},
            "paste_deploy": {"flavor": "keystone", "config_file": packaged(cloud, "glance/glance-api-paste.ini")},
            "glance_store": {"default_backend": "files"},
            "files": {"filesystem_store_datadir": cloud.state / "images"},
            # What Glance fetches itself comes through here.
            "os_glance_staging_store": {"filesystem_store_datadir": cloud.state / "staging"},
            "os_glance_tasks_store": {"filesystem_store_datadir": cloud.state / "tasks"},
        },
    )


def _nova(cloud: Cloud, host: str | None) -> Settings:
    caller = credentials(cloud, "nova")
    program = _program(cloud, "nova", host)
    program["DEFAULT"] |= {
        "my_ip": LOCAL,
        "rootwrap_config": packaged(cloud, "nova/rootwrap.conf"),
        # Nothing tells Nova that a port has been plugged, as nothing plugs any.
        "vif_plugging_is_fatal": False,
        "vif_plugging_timeout": 0,
        # A dead host is noticed after twelve seconds instead of a minute.
        "report_interval": 4,
        "service_down_time": 12,
        "allow_resize_to_same_host": False,
        # Otherwise it waits for three minutes whether something of what it does still ends.
        "graceful_shutdown_timeout": 4,
        "manager_shutdown_timeout": 2,
    }
    return joined(
        program,
        _service(cloud, "nova", "nova"),
        {
            "placement": caller,
            "neutron": caller,
            "glance": caller,
            "cinder": {**caller, "catalog_info": "volumev3::internalURL", "os_region_name": cloud.region},
            "vnc": {"enabled": False},
        },
    )


def nova(cloud: Cloud) -> Settings:
    """For API, conductor, scheduler and nova-manage."""
    return joined(
        _nova(cloud, None),
        {
            "api_database": {"connection": database_url(cloud, "nova_api"), "max_pool_size": 5},
            "conductor": {"workers": 1},
            "scheduler": {"workers": 1, "discover_hosts_in_cells_interval": 15},
        },
    )


def hypervisor(cloud: Cloud, host: str) -> Settings:
    """For one nova-compute. It may not know of a database."""
    settings = joined(
        _nova(cloud, host),
        {
            "DEFAULT": {
                "compute_driver": "hypervisor.Hypervisor",
                "instances_path": cloud.state_of(host) / "instances",
                "cpu_allocation_ratio": 4.0,
                "ram_allocation_ratio": 1.0,
                "disk_allocation_ratio": 1.0,
                "reserved_host_memory_mb": 0,
                "sync_power_state_interval": 60,
                "update_resources_interval": 60,
            },
            "compute": {"live_migration_wait_for_vif_plug": False},
            "testbed": {"vcpus": HOST_VCPUS, "memory_mb": HOST_MEMORY_MB, "disk_gb": HOST_DISK_GB},
        },
    )
    del settings["database"]
    return settings


def neutron(cloud: Cloud) -> Settings:
    return joined(
        _program(cloud, "neutron"),
        _service(cloud, "neutron", "neutron"),
        {
            "DEFAULT": {
                "core_plugin": "ml2",
                "service_plugins": "router",
                "api_paste_config": packaged(cloud, "neutron/api-paste.ini"),
                # There is no agent to tell.
                "dhcp_agent_notification": False,
                "rpc_workers": 0,
            },
            "nova": {**credentials(cloud, "nova"), "endpoint_type": "internal"},
            "placement": {**credentials(cloud, "placement"), "endpoint_type": "internal"},
            "ml2": {
                "type_drivers": "local,flat,vlan,vxlan",
                "tenant_network_types": "vxlan",
                "mechanism_drivers": "testbed",
                "extension_drivers": "port_security",
            },
            "ml2_type_flat": {"flat_networks": "*"},
            "ml2_type_vxlan": {"vni_ranges": "1:4000"},
            "ml2_type_vlan": {"network_vlan_ranges": "physical:100:200"},
        },
    )


def cinder(cloud: Cloud) -> Settings:
    return joined(
        _program(cloud, "cinder"),
        _service(cloud, "cinder", "cinder"),
        {
            "DEFAULT": {
                "my_ip": LOCAL,
                "enabled_backends": "files",
                "default_volume_type": "standard",
                "glance_api_servers": cloud.internal("image"),
                "api_paste_config": packaged(cloud, "cinder/api-paste.ini"),
                "resource_query_filters_file": packaged(cloud, "cinder/resource_filters.json"),
                "rootwrap_config": packaged(cloud, "cinder/rootwrap.conf"),
                "osapi_volume_workers": 1,
                # Any user may make an image of a volume; the bytes go through here.
                "image_conversion_dir": cloud.state / "cinder" / "conversion",
            },
            "files": {
                "volume_driver": "testbed_volumes.FileDriver",
                "volume_backend_name": "files",
                "testbed_volumes_dir": cloud.state / "volumes",
                # The scheduler refuses volumes until it has heard of a pool.
                "backend_stats_polling_interval": 10,
            },
            "nova": credentials(cloud, "nova"),
        },
    )


SERVICES = {
    "keystone": keystone,
    "placement": placement,
    "glance": glance,
    "nova": nova,
    "neutron": neutron,
    "cinder": cinder,
}


def file_of(cloud: Cloud, service: str) -> Path:
    """The file of a service; Glance insists on another name."""
    return cloud.etc / service / ("glance-api.conf" if service == "glance" else f"{service}.conf")


# ------------------------------------------------------------------------------------------------ object store


def swift(cloud: Cloud) -> Settings:
    """swift.conf, which all of Swift reads: names are hashed with this salt."""
    return {
        "swift-hash": {"swift_hash_path_prefix": "testbed", "swift_hash_path_suffix": cloud.name},
        "storage-policy:0": {"name": "default", "default": "yes"},
    }


def swift_store(cloud: Cloud, kind: str) -> Settings:
    """One of account, container and object server: a single device, a single copy."""
    return {
        "DEFAULT": {
            "swift_dir": cloud.etc / "swift",
            "devices": cloud.state / "swift",
            "mount_check": False,
            "user": "root",
            "bind_ip": LOCAL,
            "bind_port": cloud.own_port(kind),
            "workers": 0,
            "log_level": "WARNING",
            "log_address": "/nonexistent",
        },
        "pipeline:main": {"pipeline": f"{kind}-server"},
        f"app:{kind}-server": {"use": f"egg:swift#{kind}"},
        f"{kind}-replicator": {},
        f"{kind}-updater": {},
        f"{kind}-auditor": {},
    }


FILTERS = (
    "catch_errors gatekeeper healthcheck proxy-logging cache listing_formats bulk tempurl "
    # S3 requests are signed: s3api reads the signature, s3token has Keystone check it. This order is the only one.
    "authtoken s3api s3token keystoneauth copy container-quotas account-quotas slo dlo versioned_writes proxy-logging"
)


def swift_proxy(cloud: Cloud) -> Settings:
    plain: Settings = {
        f"filter:{name}": {"use": f"egg:swift#{name.replace('-', '_')}"} for name in set(FILTERS.split())
    }
    caller = credentials(cloud, "swift")
    special: Settings = {
        "filter:cache": {"use": "egg:swift#memcache", "memcache_servers": f"{LOCAL}:{cloud.own_port('memcached')}"},
        "filter:authtoken": {
            "paste.filter_factory": "keystonemiddleware.auth_token:filter_factory",
            "delay_auth_decision": True,
            "www_authenticate_uri": f"{cloud.public('identity')}/v3",
            "interface": "internal",
            **caller,
        },
        "filter:keystoneauth": {"use": "egg:swift#keystoneauth", "operator_roles": "admin, member"},
        "filter:s3api": {"use": "egg:swift#s3api", "location": cloud.region},
        # Without credentials of its own Keystone refuses it (401).
        "filter:s3token": {"use": "egg:swift#s3token", "auth_uri": f"{cloud.internal('identity')}/v3", **caller},
    }
    return {
        "DEFAULT": {
            "swift_dir": cloud.etc / "swift",
            "bind_ip": LOCAL,
            "bind_port": cloud.internal_port("object-store"),
            "user": "root",
            "workers": 0,
            "log_level": "WARNING",
            "log_address": "/nonexistent",
        },
        "pipeline:main": {"pipeline": f"{FILTERS} proxy-server"},
        "app:proxy-server": {"use": "egg:swift#proxy", "account_autocreate": True, "allow_account_management": True},
        **dict(sorted(plain.items())),
        **special,
    }


# ------------------------------------------------------------------------------------------------ programs

PLUGINS = HERE / "plugins"
"""Python files of ours that OpenStack loads."""


def wsgi(cloud: Cloud, service: str, module: str, more: Section) -> Settings:
    """uwsgi.ini of one API. One process with threads: the machine is small."""
    return {
        "uwsgi": {
            "module": module,
            "socket": cloud.socket(service),
            "chmod-socket": 600,
            "processes": 1,
            "threads": 8,
            "enable-threads": True,
            "lazy-apps": True,
            "need-app": True,
            "die-on-term": True,
            "buffer-size": 65535,
            "listen": 100,
            "disable-logging": True,
            "procname-prefix": f"{cloud.name} {service} ",
            **more,
        }
    }
