"""This folder's model in FuxiCTR: its classes, its weights, and training. It needs fuxictr, and not autoembed.

    python model.py                 # trains from these weights on clicks/train.parquet and clicks/valid.parquet
    python model.py --fresh         # likewise, from fresh weights

The classes have the forms and names of those in FuxiCTR's model zoo, which its package does not hold; who has the zoo
may use its run_expid.py with --config . --expid autoembed.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.layers import CrossNetV2, FactorizationMachine, FeatureEmbedding, LogisticRegression, MLP_Block
from fuxictr.pytorch.models import BaseModel
from fuxictr.utils import load_config
from safetensors.torch import load_file
from torch import nn

EXPERIMENT = "autoembed"


class Base(BaseModel):
    """A model of a feature map and of the parameters that the two configs give."""

    def __init__(self, feature_map, params):
        penalty = params.get("regularizer")
        own = {"embedding_regularizer": penalty, "net_regularizer": penalty} if penalty is not None else {}
        super().__init__(feature_map, **(own | params))
        self.params = params
        self.build(feature_map, params["embedding_dim"])
        self.compile(params["optimizer"], params["loss"], params["learning_rate"])
        self.reset_parameters()
        self.model_to_device()

    def build(self, feature_map, dim):
        """Makes the layers."""
        raise NotImplementedError

    def logits(self, inputs):
        """Columns of ids, int64 [N] each -> logits [N, 1]."""
        raise NotImplementedError

    def forward(self, inputs):
        return {"y_pred": self.output_activation(self.logits(self.get_inputs(inputs)))}

    def mlp_of(self, hidden, inputs, output=1):
        return MLP_Block(
            input_dim=inputs,
            output_dim=output,
            hidden_units=list(hidden),
            hidden_activations="relu",
            dropout_rates=self.params["net_dropout"],
            batch_norm=self.params["batch_norm"],
        )


class LR(Base):
    def build(self, feature_map, dim):
        self.lr_layer = LogisticRegression(feature_map)

    def logits(self, inputs):
        return self.lr_layer(inputs)


class FM(Base):
    def build(self, feature_map, dim):
        self.embedding_layer = FeatureEmbedding(feature_map, dim)
        self.fm = FactorizationMachine(feature_map)

    def logits(self, inputs):
        return self.fm(inputs, self.embedding_layer(inputs))


class DNN(Base):
    def build(self, feature_map, dim):
        self.embedding_layer = FeatureEmbedding(feature_map, dim)
        self.mlp = self.mlp_of(self.params["hidden_units"], feature_map.sum_emb_out_dim())

    def logits(self, inputs):
        return self.mlp(self.embedding_layer(inputs, flatten_emb=True))


class DeepFM(FM):
    def build(self, feature_map, dim):
        super().build(feature_map, dim)
        self.mlp = self.mlp_of(self.params["hidden_units"], feature_map.sum_emb_out_dim())

    def logits(self, inputs):
        embeddings = self.embedding_layer(inputs)
        return self.fm(inputs, embeddings) + self.mlp(embeddings.flatten(start_dim=1))


class WideDeep(Base):
    def build(self, feature_map, dim):
        self.embedding_layer = FeatureEmbedding(feature_map, dim)
        self.lr_layer = LogisticRegression(feature_map, use_bias=False)
        self.dnn = self.mlp_of(self.params["hidden_units"], feature_map.sum_emb_out_dim())

    def logits(self, inputs):
        return self.lr_layer(inputs) + self.dnn(self.embedding_layer(inputs, flatten_emb=True))


class DCNv2(Base):
    def build(self, feature_map, dim):
        width, kind = feature_map.sum_emb_out_dim(), f"{self.params['model_structure']}_dnn"
        hidden = self.params[f"{kind}_hidden_units"]
        self.parallel = kind == "parallel_dnn"
        self.embedding_layer = FeatureEmbedding(feature_map, dim)
        self.crossnet = CrossNetV2(width, self.params["num_cross_layers"])
        setattr(self, kind, self.mlp_of(hidden, width, output=None))
        self.fc = nn.Linear(hidden[-1] + (width if self.parallel else 0), 1)

    def logits(self, inputs):
        embeddings = self.embedding_layer(inputs, flatten_emb=True)
        crossed = self.crossnet(embeddings)
        if not self.parallel:
            return self.fc(self.stacked_dnn(crossed))
        return self.fc(torch.cat([crossed, self.parallel_dnn(embeddings)], dim=-1))


def load(folder=".", *, fresh=False):
    """The model of an exported folder, with its weights or with fresh ones."""
    folder = Path(folder)
    params = load_config(str(folder), EXPERIMENT) | {"gpu": -1}
    where = folder / params["dataset_id"]
    feature_map = FeatureMap(params["dataset_id"], str(where))
    feature_map.load(str(where / "feature_map.json"), params)
    model = globals()[params["model"]](feature_map, params)
    if not fresh:
        model.load_state_dict(load_file(folder / "weights.safetensors"))
    return model.eval()


@torch.no_grad()
def predict(model, ids):
    """Click probabilities float32 [N] of ids int [N, F], in the order of the feature map."""
    columns = torch.as_tensor(np.asarray(ids)).long().unbind(1)
    inputs = dict(zip(model.feature_map.features, columns, strict=True))
    return model.eval()(inputs)["y_pred"].squeeze(1).numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="Do not start from the exported weights.")
    model = load(fresh=parser.parse_args().fresh)
    Path(model.model_dir).mkdir(parents=True, exist_ok=True)
    params = model.params
    os.environ["RAY_ADDRESS"] = "local"  # FuxiCTR would join any Ray cluster that it finds
    train, valid = RankDataLoader(model.feature_map, stage="train", **params)
    model.fit(train, validation_data=valid, **params)
    print({name: round(float(value), 6) for name, value in model.evaluate(valid).items()})


if __name__ == "__main__":
    main()
