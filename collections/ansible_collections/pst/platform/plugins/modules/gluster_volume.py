#!/usr/bin/python
# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""pst.platform.gluster_volume; the logic is in module_utils/gluster.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gluster_volume
short_description: A replicated GlusterFS volume with one brick per member
description:
  - V(look) says what this host's daemon knows, and in RV(lacks) what is not as it is wanted.
  - V(formed) makes the pool, the volume and its options, and starts what does not run. On one member, which has the
    volume where any has.
  - V(rejoined) gives a member that lost its disk the identity that the others know it by, the volume, an empty brick.
  - V(healed) has the whole volume compared, after V(rejoined) and V(formed). On the member that came back, where
    RV(lacks) says so until then.
  - Never removes or exchanges a brick.
version_added: 0.1.0
author: The pst platform team
options:
  state:
    description: What to do.
    type: str
    choices: [look, formed, rejoined, healed]
    default: look
  volume: {description: Name of the volume., type: str, required: true}
  members: {description: Names of all members., type: list, elements: str, required: true}
  own_name: {description: Which of them this host is., type: str, required: true}
  brick: {description: Folder of the brick. The same on each member., type: path, required: true}
  options: {description: Options of the volume., type: dict, default: {}}
  uuid: {description: 'V(rejoined): the identity that the others know this member by.', type: str}
  volume_id: {description: 'V(rejoined): the identity of the volume.', type: str}
  peers: {description: 'V(rejoined): the identities of the other members by name.', type: dict}
  timeout: {description: Seconds to wait for peers and bricks., type: int, default: 60}
attributes:
  check_mode: {support: full, description: Looks, and predicts.}
  diff_mode: {support: none}
"""

EXAMPLES = r"""
- name: Look at the volume
  pst.platform.gluster_volume:
    volume: parquet
    members: [app1.example.test, app2.example.test, app3.example.test]
    own_name: app1.example.test
    brick: /srv/parquet/brick
  register: __look
"""

RETURN = r"""
answers: {description: Whether the daemon answered., returned: always, type: bool}
uuid: {description: Identity of this host., returned: always, type: str}
pool: {description: Identities of the members by name., returned: always, type: dict}
volume_id: {description: Identity of the volume; empty where this host does not know it., returned: always, type: str}
lacks: {description: What is not as it is wanted., returned: always, type: list, elements: str}
done: {description: What was done., returned: always, type: list, elements: str}
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.pst.platform.plugins.module_utils.gluster import Gluster, GlusterError, Wanted


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["look", "formed", "rejoined", "healed"], "default": "look"},
            "volume": {"type": "str", "required": True},
            "members": {"type": "list", "elements": "str", "required": True},
            "own_name": {"type": "str", "required": True},
            "brick": {"type": "path", "required": True},
            "options": {"type": "dict", "default": {}},
            "uuid": {"type": "str"},
            "volume_id": {"type": "str"},
            "peers": {"type": "dict"},
            "timeout": {"type": "int", "default": 60},
        },
        required_if=[("state", "rejoined", ["uuid", "volume_id", "peers"])],
        supports_check_mode=True,
    )
    p = module.params
    options = {str(key): str(value) for key, value in p["options"].items()}
    gluster = Gluster(Wanted(p["volume"], p["members"], p["own_name"], p["brick"], options))
    done = []
    try:
        if not module.check_mode:
            if p["state"] == "formed":
                done = gluster.form(p["timeout"])
            elif p["state"] == "rejoined":
                done = gluster.rejoin(p["uuid"], p["volume_id"], p["peers"], p["timeout"])
            elif p["state"] == "healed":
                gluster.heal(p["timeout"])
                done = ["began to heal"]
        seen = gluster.look(patience=p["timeout"])
    except (GlusterError, OSError) as error:
        module.fail_json(msg=str(error))
    lacks = seen.lacks(gluster.wanted)
    module.exit_json(
        changed=bool(done) or (module.check_mode and p["state"] != "look" and bool(lacks)),
        answers=seen.answers,
        uuid=seen.uuid,
        pool=dict(seen.pool),
        volume_id=seen.volume_id,
        lacks=lacks,
        done=done,
    )


if __name__ == "__main__":
    main()
