"""The `saerl` command. Errors that a user can mend take one line and exit code 2; nothing else is hidden.

Each file here holds the commands on one subject; this one puts them together. What is slow to import is imported where
it is used: `saerl --help` must not wait for Prefect and torch.
"""

from __future__ import annotations

import errno
import logging
import os
import sys

import typer

from flows.cli import comparing, configs, manifests, running, service, toy
from saerl_core.errors import SaerlError

# Before anything imports Prefect, transformers or OpenMP. What the user has set stays.
for _name, _value in {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # our lines in place of Prefect's log
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "OMP_WAIT_POLICY": "passive",  # spinning threads cost up to 30x where cores are few
}.items():
    os.environ.setdefault(_name, _value)

_INTERRUPTED = 130
"""What typer makes of Ctrl-C."""

app = typer.Typer(
    name="saerl", no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False,
    add_completion=False,
    help="""Which prompts, in which order, in which batch? SAERL curates RL prompts with a model's own SAE features,
then trains on them with verl.

Try it: `saerl run` curates and trains the toy that ships with SAERL.

Use it: `saerl init` writes a config, `saerl check` tells what is wrong with it and what it will cost, `saerl run` runs
it. A second run does only what has changed. `saerl serve` runs it every night and whenever its data change.""")

for _panel, _commands in {
    "A config": (configs.init, configs.fields, configs.check),
    "A run": (running.run, running.curate, running.train, comparing.compare, running.train_sae),
    "A server that keeps it going": (service.serve, service.deploy, service.watch),
    "What was made": (manifests.export, service.gc),
}.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
app.add_typer(manifests.app, name="manifest", rich_help_panel="What was made")
app.add_typer(toy.app, name="toy", rich_help_panel="What was made")


def main() -> None:
    """Entry point of the `saerl` command."""
    try:
        app(standalone_mode=True)
    except SaerlError as error:
        sys.stderr.write(f"saerl: {' '.join(str(error).split())}\n")
        sys.exit(2)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            sys.stderr.write(f"saerl: {error.filename or 'a file'}: {error.strerror}: name a place that you may write "
                             "to (`workspace`, or where the result goes)\n")
            sys.exit(2)
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP):
            sys.stderr.write(f"saerl: {error.filename or 'a file'}: {error.strerror}: name another place\n")
            sys.exit(2)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.stderr.write(f"saerl: {error.filename or 'a file'}: {error.strerror}; nothing half-written was kept: make "
                         "room (`saerl gc` shows what nothing refers to), then run the same command again\n")
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            logging.raiseExceptions = False  # a task that ends now finds Prefect's log closed: not worth a traceback
            sys.stderr.write("saerl: interrupted; the same command goes on where it stopped\n")
        raise
