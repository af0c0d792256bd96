"""The front of a cloud: one nginx that speaks TLS to the world, plain HTTP inside, and uwsgi to the programs behind."""

from __future__ import annotations

from testbed.openstack.certificates import chain, private_key
from testbed.openstack.layout import LOCAL, Cloud

HEAD = """\
daemon off;
user root;
worker_processes 1;
pid {run}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  server_tokens off;
  default_type application/octet-stream;
  # Names and values go through as they came: objects and images may have any.
  merge_slashes off;
  underscores_in_headers on;
  large_client_header_buffers 8 32k;
  client_max_body_size 0;
  client_body_temp_path {state}/nginx/body;
  proxy_temp_path {state}/nginx/proxy;
  uwsgi_temp_path {state}/nginx/uwsgi;
  fastcgi_temp_path {state}/nginx/fastcgi;
  scgi_temp_path {state}/nginx/scgi;
  keepalive_timeout 75;
  keepalive_requests 10000;
  ssl_certificate {certificate};
  ssl_certificate_key {key};
  ssl_protocols TLSv1.2 TLSv1.3;
  ssl_session_cache shared:tls:1m;
  uwsgi_read_timeout 600;
  uwsgi_request_buffering off;
  uwsgi_max_temp_file_size 0;
  proxy_read_timeout 600;
  proxy_request_buffering off;
  proxy_max_temp_file_size 0;
  proxy_http_version 1.1;
  # nginx has put a body that came in pieces together; Glance would ask uwsgi for the pieces.
  uwsgi_param HTTP_TRANSFER_ENCODING "";
  uwsgi_param QUERY_STRING $query_string;
  uwsgi_param REQUEST_METHOD $request_method;
  uwsgi_param CONTENT_TYPE $content_type;
  uwsgi_param CONTENT_LENGTH $content_length;
  uwsgi_param REQUEST_URI $request_uri;
  uwsgi_param SCRIPT_NAME "";
  uwsgi_param PATH_INFO $document_uri;
  uwsgi_param SERVER_PROTOCOL $server_protocol;
  uwsgi_param REQUEST_SCHEME $scheme;
  uwsgi_param HTTPS $https if_not_empty;
  uwsgi_param REMOTE_ADDR $remote_addr;
  uwsgi_param REMOTE_PORT $remote_port;
  uwsgi_param SERVER_PORT $server_port;
  uwsgi_param SERVER_NAME $server_name;
"""
WSGI = """\
  server {{
    listen {local}:{public} ssl;
    listen {local}:{internal};
    location / {{ uwsgi_pass unix:{socket}; }}
  }}
"""
HTTP = """\
  server {{
    listen {local}:{public} ssl;
    location / {{ proxy_pass http://{local}:{internal}; proxy_set_header Host $http_host; }}
  }}
"""


def config(cloud: Cloud) -> str:
    """nginx.conf. The object store brings a server of its own for the inside; all others are behind a socket."""
    text = HEAD.format(run=cloud.run, state=cloud.state, certificate=chain(cloud), key=private_key(cloud))
    for service in cloud.services:
        ports = {"public": cloud.public_port(service), "internal": cloud.internal_port(service), "local": LOCAL}
        if service == "object-store":
            text += HTTP.format(**ports)
        else:
            text += WSGI.format(**ports, socket=cloud.socket(service))
    return text + "}\n"
