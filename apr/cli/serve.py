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
    from transformers.utils import logging

    from apr.engine.opening import open_engine
    from apr.engine.serve import EngineServer
    from apr.engine.slots import SlotEngine
    from apr.language.tokenizer import load_language

    logging.disable_progress_bar()
    params, language = load_scale(args.scale), load_language(args.checkpoint)
    stop_ids, window = language.syntax.stop_ids, params.grammar.window
    engine = open_engine(params.engine, window, stop_ids, args.checkpoint)

    def load(directory: Path) -> SlotEngine:
        if load_language(directory).vocabulary.ids != language.vocabulary.ids:
            raise CheckpointError(f"{directory}: another vocabulary than {args.checkpoint}'s")
        return open_engine(params.engine, window, stop_ids, directory)

    size, name = language.vocabulary.size, params.engine.served_model
    with EngineServer(engine, stop_ids, size, name, (args.host, args.port), load=load) as server:
        print(f"{args.checkpoint} at {server.url}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended")
