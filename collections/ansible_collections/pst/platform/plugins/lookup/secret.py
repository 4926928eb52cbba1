# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""pst.platform.secret; the logic is in module_utils/secrets.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DOCUMENTATION = r"""
name: secret
short_description: A secret of the site
description:
  - Returns a secret from where the site keeps its secrets, so that no role knows where that is.
  - "The variable C(site_secrets_backend) names the place:"
  - "C(generated): a file of that name in the folder C(site_secrets_path), by default C(<site_state_dir>/secrets), made
    on first use, also in check mode, and by one only of many runs at once. For a lab, and for sites that are run from
    one control node only."
  - "C(vars): the dictionary C(site_secrets), from a file that Ansible Vault encrypts, or SOPS (by the vars plugin
    C(community.sops.sops))."
  - "C(hashi_vault): the keys of one secret in HashiCorp Vault (KV version 2) at C(site_secrets_path), which is
    C(<mount>/<path>). Address and login come from the variables or the environment of
    P(community.hashi_vault.vault_kv2_get#lookup), such as E(VAULT_ADDR) and E(VAULT_TOKEN)."
version_added: 0.1.0
author: The pst platform team
options:
  _terms:
    description: The name, in lower case.
    type: list
    elements: str
    required: true
  length:
    description: How many letters and digits a generated secret has. An existing one is not changed.
    type: int
    default: 32
"""

EXAMPLES = r"""
redis_app_password: "{{ lookup('pst.platform.secret', 'redis_app_password') }}"
mongodb_key_file: "{{ lookup('pst.platform.secret', 'mongodb_key_file', length=512) }}"
"""

RETURN = r"""
_raw:
  description: The secret.
  type: list
  elements: str
"""

from ansible.errors import AnsibleLookupError  # noqa: E402
from ansible.plugins.loader import lookup_loader  # noqa: E402
from ansible.plugins.lookup import LookupBase  # noqa: E402

from ansible_collections.pst.platform.plugins.module_utils.secrets import (  # noqa: E402
    SecretError,
    checked,
    from_mapping,
    generated,
    vault_place,
)

BACKENDS = ("generated", "vars", "hashi_vault")


class LookupModule(LookupBase):
    """Ask the site's backend."""

    def run(self, terms: list[Any], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
        """Return one secret for each name."""
        self.set_options(var_options=variables, direct=kwargs)
        variables = variables or {}
        try:
            return [self._secret(checked(name), variables) for name in terms]
        except SecretError as error:
            raise AnsibleLookupError(str(error)) from None

    def _secret(self, name: str, variables: dict[str, Any]) -> str:
        backend = self._variable("site_secrets_backend", variables)
        if backend == "generated":
            shared = "site_secrets_path" in variables
            folder = self._variable("site_secrets_path" if shared else "site_state_dir", variables)
            return generated(Path(folder) / ("" if shared else "secrets"), name, self.get_option("length"))
        if backend == "vars":
            return from_mapping(self._variable("site_secrets", variables), name, "site_secrets")
        if backend == "hashi_vault":
            path = self._variable("site_secrets_path", variables)
            return from_mapping(self._vault(path, variables), name, f"HashiCorp Vault, {path}")
        raise SecretError(f"site_secrets_backend: got {backend!r}, wanted one of {', '.join(BACKENDS)}")

    def _variable(self, name: str, variables: dict[str, Any]) -> Any:
        if name not in variables:
            raise SecretError(f"{name}: is not set for this site")
        return self._templar.resolve_variable_expression(name)

    def _vault(self, place: str, variables: dict[str, Any]) -> dict[str, Any]:
        mount, path = vault_place(place)
        lookup = lookup_loader.get("community.hashi_vault.vault_kv2_get", loader=self._loader, templar=self._templar)
        return lookup.run([path], variables=variables, engine_mount_point=mount)[0]["secret"]
