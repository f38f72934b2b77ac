"""Answers without content as protobuf messages."""

from __future__ import annotations

from mesh.routing.explain import Explanation, Outcome, Verdict
from mesh.types import Endpoint, ModelKind, ModelView, Resolution
from mesh.v1 import inference_pb2, router_pb2

_KIND = {
    ModelKind.CHAT: inference_pb2.MODEL_KIND_CHAT,
    ModelKind.EMBEDDING: inference_pb2.MODEL_KIND_EMBEDDING,
}
_OUTCOME = {
    Outcome.SERVE: router_pb2.OUTCOME_SERVE,
    Outcome.FORWARD: router_pb2.OUTCOME_FORWARD,
    Outcome.REFUSE: router_pb2.OUTCOME_REFUSE,
}
_VERDICT = {Verdict.TAKEN: router_pb2.VERDICT_TAKEN, Verdict.REJECTED: router_pb2.VERDICT_REJECTED}


def model_message(model: ModelView) -> inference_pb2.Model:
    """A model as one key sees it."""
    return inference_pb2.Model(id=model.id, kind=_KIND[model.kind], context=model.context, regions=model.regions)


def resolution_message(resolution: Resolution) -> router_pb2.ResolveResponse:
    """The endpoints of a pin."""
    return router_pb2.ResolveResponse(
        here=resolution.here,
        served_here=resolution.served_here,
        allowed=[_endpoint(endpoint) for endpoint in resolution.allowed],
        policy_revision=resolution.revision,
    )


def explanation_message(explanation: Explanation) -> router_pb2.ExplainResponse:
    """Where a call would be served, and why."""
    return router_pb2.ExplainResponse(
        tenant=explanation.tenant,
        model=explanation.model,
        at=explanation.at,
        outcome=_OUTCOME[explanation.outcome],
        region=explanation.region or "",
        code=explanation.code.value if explanation.code else "",
        reasons=[
            router_pb2.RouteReason(
                region=reason.region, verdict=_VERDICT[reason.verdict], code=reason.code.value, text=reason.text
            )
            for reason in explanation.reasons
        ],
    )


def _endpoint(endpoint: Endpoint) -> router_pb2.Endpoint:
    return router_pb2.Endpoint(
        region=endpoint.region, jurisdiction=endpoint.jurisdiction, http=endpoint.http, grpc=endpoint.grpc
    )
