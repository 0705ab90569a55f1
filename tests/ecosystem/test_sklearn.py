"""Protects a skorch classifier around a compiled model, in scikit-learn's own tools."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from layer_kinds import KINDS, first_of, width
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler
from torch import nn

import rnnjit
from rnnjit.frontend.compiled_base import CompiledBase

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations of what skorch imports
    from skorch import NeuralNetClassifier
    from skorch.callbacks import EpochScoring

IMAGES = 200


class Classifier(nn.Module):
    def __init__(self, compiled=True, kind="RNN", hidden=24, bidirectional=False):
        super().__init__()
        torch.manual_seed(0)
        rnn = KINDS[kind](8, hidden, batch_first=True, bidirectional=bidirectional)
        self.rnn = rnnjit.compile(rnn) if compiled else rnn
        self.head = nn.Linear(width(rnn) * (1 + bidirectional), 10)
        self.double()  # in which both trainings stay as close as the layers are

    def forward(self, rows):
        return self.head(self.rnn(rows)[0].mean(dim=1))


def as_rows(pixels):
    return pixels.reshape(-1, 8, 8)


@pytest.fixture(scope="module")
def digits():
    found = load_digits()
    return found.data[:IMAGES], found.target[:IMAGES]


def pipeline(compiled, kind="RNN"):
    net = NeuralNetClassifier(
        Classifier,
        module__compiled=compiled,
        module__kind=kind,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=0.03,
        max_epochs=5,
        batch_size=16,
        train_split=None,
        callbacks=[("train_accuracy", EpochScoring("accuracy", on_train=True))],
        verbose=0,
    )
    return make_pipeline(MinMaxScaler(), FunctionTransformer(as_rows), net)


@pytest.mark.parametrize("kind", first_of("LSTM"))
def test_cross_validation(digits, kind):
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    eager, fast = (
        cross_validate(
            pipeline(compiled, kind),
            *digits,
            cv=folds,
            scoring=["accuracy", "neg_log_loss"],
            return_estimator=True,
            error_score="raise",
        )
        for compiled in (False, True)
    )
    for score in ("test_accuracy", "test_neg_log_loss"):
        np.testing.assert_allclose(fast[score], eager[score], rtol=1e-7)
    # Of ten digits, in five epochs: more than by chance.
    assert fast["test_accuracy"].mean() > 0.2
    for ours, theirs in zip(fast["estimator"], eager["estimator"], strict=True):
        assert isinstance(ours[-1].module_.rnn, CompiledBase)
        assert not isinstance(theirs[-1].module_.rnn, CompiledBase)
        np.testing.assert_allclose(
            ours.predict_proba(digits[0]), theirs.predict_proba(digits[0]), rtol=1e-6, atol=1e-9
        )
        losses = (net[-1].history[:, "train_loss"] for net in (ours, theirs))
        np.testing.assert_allclose(*losses, rtol=1e-9)


@pytest.mark.full
def test_a_grid_search_in_worker_processes(digits):
    """Joblib pickles the estimators to processes of its own, and the best one back."""
    grid = {
        "neuralnetclassifier__module__bidirectional": [False, True],
        "neuralnetclassifier__module__kind": ["RNN", "GRU"],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # joblib forks in a threaded process
        eager, fast = (
            GridSearchCV(pipeline(compiled), grid, cv=2, n_jobs=jobs, error_score="raise").fit(
                *digits
            )
            for compiled, jobs in ((False, None), (True, 2))
        )
    assert fast.best_params_ == eager.best_params_
    for score in ("mean_test_score", "std_test_score"):
        np.testing.assert_allclose(fast.cv_results_[score], eager.cv_results_[score], rtol=1e-9)
    assert (fast.predict(digits[0]) == eager.predict(digits[0])).all()


def test_saved_cloned_and_fitted_further(digits, tmp_path):
    fitted = pipeline(True, "GRU").fit(*digits)
    again = clone(fitted).fit(*digits)
    np.testing.assert_array_equal(again.predict_proba(digits[0]), fitted.predict_proba(digits[0]))
    copied = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(copied.predict_proba(digits[0]), fitted.predict_proba(digits[0]))

    fitted[-1].save_params(f_params=tmp_path / "net.pt")
    plain = pipeline(False, "GRU")[-1].initialize()
    plain.load_params(f_params=tmp_path / "net.pt")
    rows = fitted[:-1].transform(digits[0])
    np.testing.assert_allclose(plain.predict_proba(rows), fitted[-1].predict_proba(rows), rtol=1e-9)
    before = accuracy_score(digits[1], fitted.predict(digits[0]))
    fitted[-1].partial_fit(rows, digits[1])
    assert accuracy_score(digits[1], fitted.predict(digits[0])) >= before
