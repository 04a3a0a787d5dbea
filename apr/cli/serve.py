"""`apr serve`: a checkpoint behind HTTP."""

import argparse

from apr.cli.plan import load_scale


def serve(args: argparse.Namespace) -> None:
    """Serve a checkpoint over HTTP, token ids in and out, in the wire formats of vLLM and SGLang.

    Window, slots and device are those of the parameters. Ends with Ctrl-C.
    """
    import torch

    from apr.engine.checkpoint import load_model
    from apr.engine.serve import EngineServer
    from apr.engine.slots import SlotEngine
    from apr.grammar.tokenizer import load_language

    params = load_scale(args.scale)
    torch.set_num_threads(params.engine.torch_threads)
    language = load_language(args.checkpoint)
    stop_ids = language.syntax.stop_ids
    model = load_model(args.checkpoint, params.engine.device)
    engine = SlotEngine(model, stop_ids, params.engine.slots, params.grammar.window)
    size, name = language.vocabulary.size, params.engine.served_model
    with EngineServer(engine, stop_ids, size, name, (args.host, args.port)) as server:
        print(f"{args.checkpoint} at {server.url}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended")
