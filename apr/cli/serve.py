"""`apr serve`: a checkpoint behind HTTP."""

import argparse
from pathlib import Path

from apr.core.errors import CheckpointError
from apr.pipeline.plan import load_scale


def serve(args: argparse.Namespace) -> None:
    """Serve a checkpoint over HTTP, token ids in and out, in the wire formats of vLLM and SGLang.

    Window, slots and device are those of the parameters. RL may replace the weights (`rl.servers`). Ends with
    Ctrl-C.
    """
    from transformers import PreTrainedModel
    from transformers.utils import logging

    from apr.engine.checkpoint import load_model
    from apr.engine.servers.serve import EngineServer, listen
    from apr.engine.slots import open_engine
    from apr.language.tokenizer import load_language

    logging.disable_progress_bar()
    listener = listen(args.host, args.port)
    params, language = load_scale(args.scale), load_language(args.checkpoint)
    engine = open_engine(params.engine, params.grammar.window, language.syntax.stop_ids, args.checkpoint)

    def load(directory: Path) -> PreTrainedModel:
        if load_language(directory).vocabulary.ids != language.vocabulary.ids:
            raise CheckpointError(f"{directory}: another vocabulary than {args.checkpoint}'s")
        return load_model(directory, params.engine.device)

    with EngineServer(engine, params.engine.served_model, listener, load) as server:
        print(f"{args.checkpoint} at {server.url}", flush=True)
        try:
            server.wait()
        except KeyboardInterrupt:
            print("ended")
