"""litserve's side of `tools.benchmark serve`: the same net, decoding and responses behind its server and batching."""

from __future__ import annotations

import argparse
import base64
from pathlib import Path
from typing import Any

import litserve  # type: ignore[import-not-found]
from PIL import Image

from data_loader.decoding import decode
from deploy.backends.loading import load_backend
from deploy.inference.prediction import Prediction
from deploy.inference.predictor import Predictor

TOP_K = 5


class Classifier(litserve.LitAPI):
    """The API that litserve calls: one image in base64 per request, in the same JSON as our service."""

    def __init__(self, weights: Path, **options: Any) -> None:
        super().__init__(**options)
        self.weights = weights

    def setup(self, device: str) -> None:
        """Load the net, in the process that predicts."""
        backend, metadata = load_backend(self.weights, device=device)
        self.predictor, self.metadata = Predictor(backend, metadata), metadata

    def decode_request(self, request: dict[str, str]) -> Image.Image:
        """Decode an image."""
        preprocess = self.metadata.preprocess
        data = base64.b64decode(request["content"], validate=True)
        return decode(data, preprocess.channels, preprocess.max_pixels, icc_profiles=preprocess.icc_profiles)

    def batch(self, inputs: list[Image.Image]) -> list[Image.Image]:
        """Return them unchanged: the predictor stacks them once they have one size."""
        return inputs

    def predict(self, images: list[Image.Image] | Image.Image) -> list[Prediction] | Prediction:
        """Predict a batch, or a single image where there is no batching."""
        if isinstance(images, Image.Image):
            return self.predictor.predict_images([images], TOP_K)[0]
        return self.predictor.predict_images(images, TOP_K)

    def unbatch(self, output: list[Prediction]) -> list[Prediction]:
        """Return them unchanged."""
        return output

    def encode_response(self, output: Prediction) -> dict[str, Any]:
        """Return the response in our service's shape."""
        return {"code": 200, "msg": "ok", "data": [output.to_dict()]}


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark.peers.litserve", allow_abbrev=False)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--batch_timeout_s", type=float, default=0.002)
    parser.add_argument("--workers", type=int, default=1, help="processes that predict")
    args = parser.parse_args()
    api = Classifier(args.weights, max_batch_size=args.batch_size, batch_timeout=args.batch_timeout_s)
    server = litserve.LitServer(api, accelerator="auto", workers_per_device=args.workers, fast_queue=True)
    server.run(host="127.0.0.1", port=args.port, log_level="error", generate_client_file=False)


if __name__ == "__main__":
    main()
