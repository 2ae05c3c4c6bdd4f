"""Studies: the paper's tables and Optuna searches, on one machine or many.

`spec` says what is trained, `storage` keeps the trials, `planning` asks Optuna for them, `trials`
runs one and `workers` all of them; `results` reads them back, `claims`, `figures` and `report`
say what came out.
"""

from keras_wsgcn.studies.results import StudyResults, read_results, read_storage
from keras_wsgcn.studies.spec import StudySpec, load_spec
from keras_wsgcn.studies.workers import run

__all__ = [
    "StudyResults",
    "StudySpec",
    "load_spec",
    "read_results",
    "read_storage",
    "run",
]
