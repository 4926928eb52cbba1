# The commands of this project. `make` lists them.
SHELL := /bin/sh
export PATH := $(CURDIR)/.venv/bin:$(PATH)
LAB := inventories/lab
LAB_DR := inventories/lab_dr
PLAY := ansible-playbook -i $(LAB)

.DEFAULT_GOAL := help
.PHONY: help venv lab lab-down lab-dr lab-dr-down dr-status status logs trace support-bundle test lint unit molecule integration drill-interrupt drill-trade-once drill-pysystemtrade drill-changes drill-observe drill-restore drill-dr bench docs lock clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: ## have the toolchain in .venv
	@.ci/venv

lab: venv ## the whole platform on this machine (safe to repeat)
	@$(PLAY) playbooks/lab.yml

lab-down: venv ## remove exactly what `make lab` made
	@$(PLAY) playbooks/lab-down.yml

lab-dr: venv ## a second site beside the lab, which stands by (safe to repeat)
	@ansible-playbook -i $(LAB_DR) playbooks/lab-dr.yml

lab-dr-down: venv ## remove exactly what `make lab-dr` made
	@$(PLAY) -i $(LAB_DR) playbooks/lab-dr-down.yml

dr-status: venv ## whether the second site could take over now
	@$(PLAY) -i $(LAB_DR) playbooks/dr-status.yml

status: venv ## every service of the lab on one screen; exit status 0 when all are healthy
	@ANSIBLE_STDOUT_CALLBACK=pst.platform.plain $(PLAY) playbooks/status.yml -e status_format=short

logs: export LOG_SEARCH = $(ARGS)
logs: venv ## search the logs of the lab's hosts and playbooks: make logs ARGS="--since 2h --order 4711"
	@ANSIBLE_STDOUT_CALLBACK=pst.platform.plain $(PLAY) playbooks/logs.yml

trace: export TRACE_SEARCH = $(ARGS)
trace: venv ## what followed from a request, an order or a run, as a tree with durations: make trace ARGS="4711"
	@ANSIBLE_STDOUT_CALLBACK=pst.platform.plain $(PLAY) playbooks/trace.yml

support-bundle: venv ## one file for somebody who helps: state, logs and configuration of the lab, without secrets
	@$(PLAY) playbooks/support-bundle.yml

test: venv ## lint, unit tests, molecule for every role, the lab's integration tests
	@python .ci/test

lint: venv ## ansible-lint, yamllint, ruff, mypy
	@python .ci/test lint

unit: venv ## unit tests
	@python .ci/test unit

molecule: venv ## molecule for every role (one: molecule test -s <role>)
	@python .ci/test molecule

integration: venv ## the lab's integration tests, on a lab that is up or is started
	@python .ci/test lab

drill-interrupt: venv ## kill site.yml at ten random points; it converges each time
	@python -m pytest -q -p no:cacheprovider tests/integration/drill_interrupt.py

drill-trade-once: venv ## faults on the lab while orders flow: nothing is traded twice
	@python -m pytest -q -s -p no:cacheprovider tests/integration/drill_trade_once.py

drill-pysystemtrade: venv ## the real pysystemtrade on a lab made anew for it (PYSYSTEMTRADE_SOURCE=, _REF= or _SHA256=)
	@python -m pytest -q -s -p no:cacheprovider tests/integration/drill_pysystemtrade.py

drill-changes: venv ## every planned change of the lab under load: no request fails
	@python -m pytest -q -s -p no:cacheprovider tests/integration/drill_changes.py tests/integration/drill_mongodb_upgrade.py

drill-restore: venv ## the lab's MongoDB loses all its disks and is restored to a named second; bad repositories are refused
	@python -m pytest -q -s -p no:cacheprovider tests/integration/drill_restore.py

drill-dr: venv ## the platform moves between the lab and its second site, planned and by force (DR_REPETITIONS=5, DR_KINDS=planned,unplanned,cut_off,broken_off)
	@python -m pytest -q -s -p no:cacheprovider tests/integration/drill_dr.py

drill-observe: venv ## faults on the lab: each alert fires, somebody is told, and told again at its end (OBSERVE_ONLY=RedisDown,…)
	@python -m pytest -q -s -p no:cacheprovider tests/integration/drill_observe.py

bench: venv ## time site.yml against a shell script that does the same; what agent and guard cost a node
	@python tests/bench/bench.py
	@python tests/bench/agent.py

docs: venv ## write the generated tables of the READMEs, and Grafana's boards
	@python .ci/docs
	@python .ci/dashboards

lock: venv ## lock requirements.in again
	@pip install --quiet uv && uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --quiet requirements.in --output-file requirements.txt

clean: lab-down ## also remove the images, the toolchain and the downloads
	@docker image ls --quiet pst-lab-host | sort -u | xargs -r docker image rm --force >/dev/null
	@docker image ls --quiet pst-debian | sort -u | xargs -r docker image rm --force >/dev/null
	@rm -rf .venv .cache .ansible reports
