# `make run` and `make test` do all their own set-up on a fresh Debian machine with Python 3.11 or newer.
.PHONY: run test check docs interop mutation fuzz clean

run:
	tools/venv .venv/run '.[amqtt]'
	.venv/run/bin/python -m broker --config broker.yaml

test:
	tools/test

# The quick part of `make test`: gates and tests of this Python, no clients from outside.
check:
	tools/venv .venv/dev dev
	tools/gates .venv/dev
	.venv/dev/bin/python -m pytest -q --ignore tests/interop

# Write again what is generated: the JSON Schema, the configuration reference, the conformance table.
docs:
	tools/venv .venv/dev dev
	.venv/dev/bin/python -m tools.generate

# The MQTT 5 interoperability suite that paho ships, against a running broker. Takes two minutes.
interop:
	tools/venv .venv/dev dev
	.venv/dev/bin/python -m tests.interop.paho_suite

# What the tests would miss in broker/mqtt and broker/core. Takes hours.
mutation:
	tools/venv .venv/dev dev
	.venv/dev/bin/pip install -q 'mutmut>=3.2'
	TERNMQ_EXAMPLES=0.1 .venv/dev/bin/mutmut run
	.venv/dev/bin/mutmut results

# Longer Hypothesis campaigns over the codec and connections.
fuzz:
	tools/venv .venv/dev dev
	TERNMQ_EXAMPLES=200 .venv/dev/bin/python -m pytest -q tests/core/test_equivalence.py tests/core/test_model.py tests/config

clean:
	rm -rf .venv build dist node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis
