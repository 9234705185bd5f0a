# honmaru. Plain `make` prints what there is.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Without its cache of bytecode every enclave that a test starts would compile all of honmaru anew.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help quickstart stop install system install-quantum test test-long test-quantum test-identity test-keys test-clients test-radosgw test-inference test-inference-long test-observability test-sagemaker-sdk check format bench bench-ledger bench-gateway bench-fairness bench-inference bench-policy bench-quantum docs new-service clean

help: ## this text
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Use it
quickstart: install system ## set up, train, approve, import and ask a model; leaves the enclave running
	@$(BIN)/honmaru quickstart

stop: ## stop the enclave that quickstart left running, and its jobs
	@$(BIN)/honmaru down --jobs

##@ Develop it
install: ## the locked environment in .venv
	@PYTHON=$(PYTHON) scripts/install $(VENV)

install-quantum: install ## the locked environment of quantum tasks and hybrid jobs in .venv-quantum
	@PYTHON=$(PYTHON) scripts/install-quantum .venv-quantum

system: ## what Debian must have: bubblewrap
	@scripts/system bubblewrap

test: install ## every test but the long ones (under 5 minutes on 2 cores)
	@scripts/system bubblewrap postgresql
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0 -m "not long" tests

test-long: install ## the full kill, tamper and mutation runs
	@scripts/system bubblewrap postgresql
	@HONMARU_LONG=1 $(BIN)/python -m pytest -n 2 --dist loadfile --timeout 3600 tests/unit tests/security tests/protocol

test-keys: install ## SoftHSM's token, sealed starts, the CBOM against CycloneDX's schema, 200 kills, 400 changed backups
	@scripts/system softhsm2
	@scripts/install-peers cbom
	@HONMARU_LONG=1 $(BIN)/python -m pytest --timeout 3600 tests/unit/test_root_key.py tests/unit/test_kms_custody.py tests/conformance/test_cbom_schema.py tests/conformance/test_kms_boto3.py tests/conformance/test_sealed_start.py tests/e2e/test_backup.py tests/e2e/test_encrypted_volumes.py tests/security/test_kms_kill.py

test-quantum: install-quantum system ## Amazon's Braket SDK, PennyLane and Qiskit against a live enclave
	@HONMARU_QUANTUM=1 $(BIN)/python -m pytest tests/quantum tests/unit/test_quantum_parts.py

test-sagemaker-sdk: install system ## the SageMaker SDK v2 and v3, unmodified, under AWS's real host names
	@scripts/install-peers sagemaker2
	@scripts/install-peers sagemaker3
	@HONMARU_SAGEMAKER_SDK=1 $(BIN)/python -m pytest tests/conformance/test_real_hostnames.py

test-inference: install system ## boto3's, Anthropic's, OpenAI's and LangChain's clients, over the embedded engine and llama.cpp's server
	@PYTHON=$(PYTHON) scripts/install-peers bedrock-clients
	@PYTHON=$(PYTHON) scripts/install-peers llama-cpp || echo "llama-cpp-python does not build here: its tests are skipped"
	@HONMARU_INFERENCE=1 $(BIN)/python -m pytest tests/inference

test-inference-long: install system ## 1,000 killed engines and 10,000 cancelled streams
	@HONMARU_INFERENCE=1 HONMARU_LONG=1 $(BIN)/python -m pytest tests/inference/test_engine_kills.py

test-observability: install system ## the AWS CLI, Prometheus's and OpenTelemetry's own parsers on logs, metrics, trails and spans
	@PYTHON=$(PYTHON) scripts/install-peers observability
	@HONMARU_OBSERVABILITY=1 $(BIN)/python -m pytest tests/unit/test_meters_and_spans.py tests/conformance/test_observability_boto3.py

test-clients: install ## AWS CLI v1, rclone, s3fs and DuckDB against a live enclave: 10,000 files, 200 MB, versions, lock
	@scripts/system bubblewrap rclone s3fs
	@scripts/install-peers s3-clients
	@HONMARU_CLIENTS=1 $(BIN)/python -m pytest tests/conformance/test_s3_clients.py

test-radosgw: install ## the blob store's contract, and a live enclave, on Ceph's S3 gateway from Debian
	@scripts/system bubblewrap radosgw ceph-mon ceph-osd
	@HONMARU_RADOSGW=1 $(BIN)/python -m pytest tests/contract/test_blob_store.py

test-identity: install ## IAM at length: a million random requests, awscli, 11,000 accounts, 1,000 revocations over two workers
	@HONMARU_LONG=1 $(BIN)/python -m pytest --timeout 3600 tests/unit/test_policy_kinds.py tests/unit/test_identity_parts.py \
	  tests/conformance/test_iam_awscli.py tests/conformance/test_organizations_boto3.py \
	  tests/conformance/test_saml_boto3.py tests/security/test_workers_revocation.py

check: install ## ruff, mypy --strict, import contracts, generated documents
	@$(BIN)/ruff format --check src tests scripts benchmarks examples
	@$(BIN)/ruff check src tests scripts benchmarks examples
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python scripts/coverage_table.py --check

format: install ## let ruff format and fix
	@$(BIN)/ruff format src tests scripts benchmarks examples
	@$(BIN)/ruff check --fix src tests scripts benchmarks examples

docs: install ## regenerate the generated documents
	@$(BIN)/python scripts/coverage_table.py

new-service: install ## lay down a service that answers: make new-service NAME=sqs (OPERATION=ListQueues)
	@$(BIN)/python scripts/new_service.py "$(NAME)" $(if $(OPERATION),--operation "$(OPERATION)")

##@ Measure it
bench: bench-ledger ## every benchmark

bench-ledger: install ## durable ledger appends per second and verify time, beside plain alternatives
	@$(BIN)/python benchmarks/bench_ledger.py

bench-gateway: install system ## the gateway beside moto_server: CPU a request, requests/s, latency, memory
	@scripts/install-peers gateway
	@$(BIN)/python benchmarks/bench_gateway.py

bench-policy: install ## a decision of IAM with 1,000 statements attached, beside cedarpy and casbin
	@PYTHON=$(PYTHON) scripts/install-peers policy
	@$(BIN)/python benchmarks/bench_policy.py

bench-fairness: install system ## what a flood, bad signatures and 10,000 idle connections cost a quiet tenant
	@$(BIN)/python benchmarks/bench_fairness.py

bench-quantum: install-quantum system ## quantum tasks beside the bare simulator in the same run
	@$(BIN)/python benchmarks/bench_quantum.py

bench-inference: install system ## the gateway beside LiteLLM's proxy, and the embedded engine beside the bare one and transformers
	@PYTHON=$(PYTHON) scripts/install-peers inference
	@$(BIN)/python benchmarks/bench_inference.py --soak 60

##@ Tidy up
clean: ## remove the environment and caches (never an enclave's data)
	@rm -rf $(VENV) .venv-quantum .venv-peers .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
