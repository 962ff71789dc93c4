"""Studies: many trials under Ray Tune and Optuna, recorded in a run folder and mirrored to MLflow.

Nothing outside this folder imports ray, optuna or mlflow. What they read from the environment when they are imported is
set here, once, and only where the user has not set it.
"""

import os
import sys

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # A token keeps other users of this machine out of the study's Ray; a cluster's clients need the same mode.
    "RAY_AUTH_MODE": "token",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # On a loaded machine a raylet takes longer to start than the 30 s that Ray waits.
    "RAY_raylet_start_wait_time_s": "120",
    # A trial that asks for no GPU may still see one: `device: auto` then means the same inside and outside of Ray.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Ctrl-C ends the study at once: --resume reads the run folder, and not Ray's snapshots.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}

# What the user has set.
CHOSEN = frozenset(name for name in ENVIRONMENT if name in os.environ)

for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

if "ray" in sys.modules and not sys.modules["ray"].is_initialized():
    # Ray has read them already, when the program imported it: without this it could not talk to what it starts.
    from ray._raylet import Config  # type: ignore[attr-defined]  # compiled, without types

    Config.initialize("")
