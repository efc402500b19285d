"""The models that are served, and their tokenizer."""

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from nsa_api.errors import bad_request
from nsa_api.openapi import documented
from nsa_api.responses import (
    DetokenizeResponse,
    ModelCard,
    ModelList,
    TokenizeResponse,
    TokenizerInfo,
)
from nsa_api.routes.common import json_response
from nsa_api.schemas import DetokenizeRequest, TokenizeRequest
from nsa_api.state import ServerState, server_state
from nsa_api.validation import StrictRoute, check_token_ids, ignored_header

router = APIRouter(route_class=StrictRoute)


@router.get("/v1/models", responses=documented(ModelList))
async def list_models(request: Request) -> Response:
    """Every name under which the model is served."""
    state = server_state(request)
    return json_response(ModelList(data=[_card(state, name) for name in state.model_names()]))


@router.get("/v1/models/{model:path}", responses=documented(ModelCard))
async def get_model(model: str, request: Request) -> Response:
    """One of them."""
    state = server_state(request)
    state.check_model(model)
    return json_response(_card(state, model))


@router.post("/tokenize", responses=documented(TokenizeResponse))
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """Token ids of a prompt or of a conversation, the template included."""
    state = server_state(request)
    engine = state.engine()
    if body.model is not None:
        state.check_model(body.model)
    headers = ignored_header(body)
    tokenizer = engine.tokenizer
    if body.prompt is not None and body.messages is None:
        plain = body.add_special_tokens is False
        encode = tokenizer.encode_plain if plain else tokenizer.encode
        tokens = await asyncio.to_thread(encode, body.prompt)
    elif body.messages is not None and body.prompt is None:
        messages = [message.for_template() for message in body.messages]
        tools = [tool.for_template() for tool in body.tools or ()]
        tokens = await asyncio.to_thread(
            tokenizer.encode_chat,
            messages,
            tools=tools,
            add_generation_prompt=body.add_generation_prompt,
        )
    else:
        raise bad_request("exactly one of prompt and messages must be given", "prompt")
    answer = TokenizeResponse(
        count=len(tokens),
        max_model_len=engine.info.max_model_len,
        tokens=tokens,
        token_strs=list(map(tokenizer.token_text, tokens)) if body.return_token_strs else None,
    )
    return json_response(answer, headers)


@router.get("/tokenizer_info", responses=documented(TokenizerInfo))
async def tokenizer_info(request: Request) -> Response:
    """Special tokens and the chat template."""
    engine = server_state(request).engine()
    tokenizer = engine.tokenizer
    answer = TokenizerInfo(
        model_max_length=engine.info.max_model_len,
        chat_template=tokenizer.chat_template_source,
        **tokenizer.special_tokens,
    )
    return json_response(answer)


@router.post("/detokenize", responses=documented(DetokenizeResponse))
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    """The text of token ids, special tokens included."""
    state = server_state(request)
    engine = state.engine()
    if body.model is not None:
        state.check_model(body.model)
    headers = ignored_header(body)
    check_token_ids("tokens", [body.tokens], engine)
    text = await asyncio.to_thread(engine.tokenizer.decode, body.tokens, skip_special_tokens=False)
    return json_response(DetokenizeResponse(text), headers)


def _card(state: ServerState, name: str) -> ModelCard:
    info = state.engine().info
    return ModelCard(
        id=name, created=state.created, root=info.model_name, max_model_len=info.max_model_len
    )
