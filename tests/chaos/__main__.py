"""Random kills, by seed: ``make chaos``, ``make chaos SEEDS=0-9``, ``python -m tests.chaos 17 --again``."""

from __future__ import annotations

import os
import sys

from tests.stores.s3 import ENVIRONMENT

if __name__ == "__main__":
    # Before Ray is loaded, which reads these once. A lost node is noticed in seconds.
    os.environ |= ENVIRONMENT | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0" * 32,
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_prestart_worker_first_driver": "false",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "5000",
        "RAY_gcs_rpc_server_connect_timeout_s": "60",  # a busy machine takes longer than 5 s
    }
    from tests.chaos.series import main

    sys.exit(main())
