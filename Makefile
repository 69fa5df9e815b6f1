# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint format stats real bench docs example setup lock clean

demo: $(READY)  ## run the main job on the embedded endpoint, leave a report
	$(BIN)/harness run locustfiles/chat.yaml

test: $(READY)  ## run all tests
	$(BIN)/python -m pytest

lint: $(READY)  ## ruff, mypy and the layers contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

stats: $(READY)  ## simulate runs of known truth, hold every verdict to its errors; docs/statistics.md
	$(BIN)/python tests/stats/write_statistics.py

real: $(READY)  ## run plans against a real model server (llama.cpp with SmolLM2-135M)
	$(BIN)/python tests/real/run.py

bench: $(READY) .bench/.ready  ## speed and exactness against other clients; writes docs/benchmarks.md
	-$(BIN)/python tests/bench/peers.py  # aiperf and guidellm, where they install
	$(BIN)/python tests/bench/run.py

.bench/.ready:
	$(PYTHON) -m venv .bench/venv
	.bench/venv/bin/python -m pip install --quiet --disable-pip-version-check aiohttp uvloop
	touch $@

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)

lock: $(READY)  ## write the installed versions down as the tested ones
	{ echo '# Tested versions; pip install -c constraints.txt. Refresh with `make lock`.'; \
	  $(BIN)/python -m pip freeze --exclude-editable; } > constraints.txt

clean:
	rm -rf .venv .real .bench build dist *.egg-info .mypy_cache .ruff_cache

docs: $(READY)  ## write the generated parts of README.md
	$(BIN)/python tests/readme_parts.py

example: $(READY)  ## run the committed example again (it FAILs: exit code 3) and its picture
	rm -rf build/example
	$(BIN)/harness run reports/example/plan.yaml --out build/example; test $$? -eq 3
	cp -r build/example/. reports/example/
	rm -rf reports/example/charts reports/example/locust.log
