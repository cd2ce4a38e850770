"""The main job: one data set, several guides, several seeds; which guide explains held-out data better?

Every guide gets the same architecture, initial weights, initial σ, batches and noise; only the map from the
encoder's output to σ differs. Each trains a model of its own, so what is compared is the evidence of held-out
observations.
"""

from pyro_vae.study.completion import diagnose_again, refined_again, report_again
from pyro_vae.study.config import StudyConfig
from pyro_vae.study.job import follow_study, resume_study, run_study
from pyro_vae.study.pairs import make_pair, split_data
from pyro_vae.study.result import Study

__all__ = [
    "Study",
    "StudyConfig",
    "diagnose_again",
    "follow_study",
    "make_pair",
    "refined_again",
    "report_again",
    "resume_study",
    "run_study",
    "split_data",
]
