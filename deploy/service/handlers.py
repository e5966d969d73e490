"""The handler of prediction requests: the body is read, the images queued, and the predictions returned as JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from artifacts.metadata import ModelMetadata
from deploy.inference.class_prediction import ClassPrediction
from deploy.inference.prediction import Prediction
from deploy.service.audit import Audit
from deploy.service.heatmaps import HeatMaps
from deploy.service.request_guard import Exchange, RequestGuard, json_response
from deploy.service.request_parser import CONTENT, RequestError, Upload, content_name, read_upload
from deploy.service.routes import HEATMAP, Route


class PredictHandler:
    """Handles the requests of every route with one net, within the limits."""

    def __init__(
        self,
        guard: RequestGuard,
        metadata: ModelMetadata,
        heatmaps: HeatMaps | None,
        audit: Audit | None = None,
    ) -> None:
        self._guard, self._metadata, self._heatmaps, self._audit = guard, metadata, heatmaps, audit

    async def handle(self, request: Request, route: Route) -> Response:
        """Return the response to a request: its predictions, or an error."""

        async def predict(exchange: Exchange) -> Response:
            return json_response(200, {"code": 200, "msg": "ok", "data": await self._entries(exchange, route)})

        return await self._guard.respond(request, predict)

    async def _entries(self, exchange: Exchange, route: Route) -> list[dict[str, Any]]:
        """Return an entry for each image of the request, in order."""
        kind = exchange.request.headers.get("content-type", "")
        upload = await exchange.parsed(
            partial(read_upload, content_type=kind, defaults=route.switches, limits=exchange.limits)
        )
        self._check_pairs(upload)
        predictions = await exchange.wait(exchange.batcher.submit(upload.images))
        for index, prediction in enumerate(predictions):
            if prediction.error:
                place = index * self._metadata.preprocess.images
                raise RequestError(422, f"{content_name(place, len(upload.images))}: {prediction.error}")
        if any(prediction.is_slow for prediction in predictions):
            entries = await exchange.in_pool(self._made_entries, route, predictions, upload)
        else:
            entries = self._made_entries(route, predictions, upload)
        if self._heatmaps is not None and upload.switches.get(f"need_{HEATMAP}"):
            for entry, data, prediction in zip(entries, upload.images, predictions, strict=True):
                entry[HEATMAP] = await exchange.wait(self._heatmap(data, prediction))
        if self._audit is not None:  # last: what fails before is not drawn
            for entry, prediction in zip(entries, predictions, strict=True):
                entry |= self._audit.mark(prediction)
        return entries

    def _check_pairs(self, upload: Upload) -> None:
        """Raise RequestError where a net of pairs got an image without its partner."""
        if len(upload.images) % self._metadata.preprocess.images:
            got = f"got {len(upload.images)}"
            raise RequestError(
                400, f'this net takes pairs: "{CONTENT}" holds two images each, the earlier first; {got}'
            )

    def _made_entries(self, route: Route, predictions: Sequence[Prediction], upload: Upload) -> list[dict[str, Any]]:
        return [route.entry(prediction, self._metadata, upload.switches) for prediction in predictions]

    def _heatmap(self, data: bytes, prediction: Prediction) -> asyncio.Future[str]:
        assert self._heatmaps is not None and isinstance(prediction, ClassPrediction)  # a checkpoint of classes
        return asyncio.ensure_future(self._heatmaps.data_url(data, prediction.label))
