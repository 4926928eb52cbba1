"""The option that all redis_* modules share."""


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  cluster:
    description: The cluster, and how to log in.
    type: dict
    required: true
    suboptions:
      members:
        description: Names of all members, as they announce themselves.
        type: list
        elements: str
        required: true
      master_name:
        description: The name under which the Sentinels watch the master.
        type: str
        required: true
      user:
        description: ACL user, on Redis and on Sentinel.
        type: str
        required: true
      passwords:
        description: Its passwords. The first that works is used, so that a password can be replaced.
        type: list
        elements: str
        required: true
      ca_file:
        description: The CA that the members' certificates are verified with.
        type: path
        required: true
      port:
        description: TLS port of Redis.
        type: int
        default: 6379
      sentinel_port:
        description: TLS port of Sentinel.
        type: int
        default: 26379
author: The pst platform team
"""
