"""A1111 runs this file when it loads its extensions, before it loads a model."""

import os

from a1111_worker import parts
from modules import script_callbacks

parts.switch_on(os.environ)
# A1111 forgets its callbacks each time it loads the extensions.
script_callbacks.on_model_loaded(parts.prepare_model)
script_callbacks.on_app_started(parts.prepare_app)
