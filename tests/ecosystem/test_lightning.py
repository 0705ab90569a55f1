"""Protects Lightning: a Trainer fits, checkpoints, resumes and tests a model as an eager one."""

import copy
import warnings

import pytest
import torch
from covered import in_turn
from layer_kinds import KINDS, first_of, width
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rnnjit

with warnings.catch_warnings():
    # What Lightning and torchmetrics import warns of deprecations of their own.
    warnings.simplefilter("ignore")
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
]


class Counter(pl.LightningModule):
    """Says at every step how many ones it has read."""

    def __init__(self, kind):
        super().__init__()
        self.save_hyperparameters()
        self.rnn = KINDS[kind](1, 8, 2, batch_first=True, dropout=0.1)
        self.head = nn.Linear(width(self.rnn), 1)
        self.seen = []

    def forward(self, x):
        return self.head(self.rnn(x)[0])

    def training_step(self, batch):
        x, wanted = batch
        loss = (self(x) - wanted).square().mean()
        self.seen.append(loss.detach())
        self.log("loss", loss)
        return loss

    def validation_step(self, batch):
        x, wanted = batch
        self.log("error", (self(x) - wanted).abs().mean())

    test_step = validation_step

    def predict_step(self, batch):
        return self(batch[0])

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]


def data(dtype=torch.float64):
    bits = torch.randint(2, (24, 6, 1), generator=torch.Generator().manual_seed(0)).to(dtype)
    return DataLoader(TensorDataset(bits, bits.cumsum(dim=1)), batch_size=8)


def trainer(folder, **options):
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=any(
            isinstance(c, ModelCheckpoint) for c in options.get("callbacks", ())
        ),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )


def models(kind):
    torch.manual_seed(0)
    model = Counter(kind).double()
    return model, rnnjit.compile(copy.deepcopy(model), inplace=True)


def fitted(model, folder, **options):
    """What a fit gives: losses, the validation error, predictions, and the weights."""
    pl.seed_everything(1, verbose=False)
    runner = trainer(folder, max_epochs=4, **options)
    runner.fit(model, data(), data())
    (tested,) = runner.test(model, data(), verbose=False)
    predicted = torch.cat(runner.predict(model, data()))
    weights = [p.detach() for p in model.parameters()]
    return [*model.seen, torch.tensor(tested["error"]), predicted, *weights]


OPTIONS = {
    "plain": {},
    "clipped and accumulated": {"gradient_clip_val": 0.1, "accumulate_grad_batches": 2},
    "anomaly mode": {"precision": "64-true", "detect_anomaly": True},
}


@pytest.mark.parametrize(("kind", "how"), in_turn(list(KINDS), list(OPTIONS)))
def test_fit(kind, how, tmp_path):
    eager, fast = (fitted(model, tmp_path, **OPTIONS[how]) for model in models(kind))
    torch.testing.assert_close(fast, eager, rtol=1e-9, atol=1e-10)
    losses = [float(loss) for loss in fast[:12]]
    assert losses[-1] < losses[0] / 2


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # flags() of oneDNN sets this, too
@pytest.mark.usefixtures("onednn_where_it_runs")
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision_is_as_near_as_bfloat16(kind, tmp_path):
    options = {"precision": "bf16-mixed"}
    found = []
    for model in models(kind):
        pl.seed_everything(1, verbose=False)
        runner = trainer(tmp_path, max_epochs=2, **options)
        runner.fit(model.float(), data(torch.float32), data(torch.float32))
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        found.append(model.seen)
    # The losses alone: Adam makes a whole step of a gradient that is rounded to another sign.
    torch.testing.assert_close(found[1], found[0], rtol=0.02, atol=0.02)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")  # it is not empty: that is the point
@pytest.mark.parametrize("kind", first_of("LSTM"))
def test_a_checkpoint_resumes_and_loads_into_either(kind, tmp_path):
    eager, fast = models(kind)
    for model in (eager, fast):
        model.rnn.dropout = 0  # a resumed fit draws other masks
    expected = fitted(eager, tmp_path)
    keeper = ModelCheckpoint(dirpath=tmp_path, filename="half")
    trainer(tmp_path, max_epochs=2, callbacks=[keeper]).fit(fast, data(), data())

    plain, again = models(kind)
    for model in (plain, again):
        model.rnn.dropout = 0
        runner = trainer(tmp_path, max_epochs=4, callbacks=[ModelCheckpoint(dirpath=tmp_path)])
        runner.fit(model, data(), data(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
        seen = torch.stack(fast.seen + model.seen)
        torch.testing.assert_close(seen, torch.stack(expected[:12]), rtol=1e-9, atol=1e-10)
    loaded = Counter.load_from_checkpoint(tmp_path / "half.ckpt", weights_only=True)
    torch.testing.assert_close(
        dict(loaded.double().state_dict()), dict(fast.state_dict()), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("kind", first_of("GRU"))
def test_weight_averaging_by_a_callback(kind, tmp_path):
    eager, fast = (
        fitted(model, tmp_path, callbacks=[EMAWeightAveraging(decay=0.8)]) for model in models(kind)
    )
    torch.testing.assert_close(fast, eager, rtol=1e-9, atol=1e-10)
