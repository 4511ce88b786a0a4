"""Label Studio's own settings, with an SQLite that lets people work at the same time.

Runs inside the server's environment (`DJANGO_SETTINGS_MODULE`), not in ours. Without it SQLite
waits five seconds for its lock and then answers "database is locked"; Label Studio then repeats the
whole request (`DatabaseIsLockedRetryMiddleware`), and an annotation that was saved before the lock
was met is saved twice.
"""

# First, because Label Studio's settings read Django's while they load: what is there is this file.
from core.settings.base import *  # noqa: F403
from core.settings.label_studio import *  # noqa: F403
from core.settings.label_studio import DATABASES

DATABASES["default"]["OPTIONS"] = {
    "timeout": 120,  # seconds to wait for the lock
    "transaction_mode": "IMMEDIATE",  # a transaction that reads first could not wait for it
    "init_command": "PRAGMA journal_mode=WAL;",
}
