"""`apr serve`: a checkpoint behind HTTP."""

import argparse

from apr.cli.plan import load_scale


def serve(args: argparse.Namespace) -> None:
    """Serve a checkpoint over HTTP, token ids in and out, in the wire formats of vLLM and SGLang.

    Window, slots and device are those of the parameters. Ends with Ctrl-C.
    """
    from apr.engine.serve import EngineServer
    from apr.eval.sweep import open_engine
    from apr.grammar.tokenizer import load_language

    params, language = load_scale(args.scale), load_language(args.checkpoint)
    engine, stop_ids = open_engine(params, language, args.checkpoint), language.syntax.stop_ids
    size, name = language.vocabulary.size, params.engine.served_model
    with EngineServer(engine, stop_ids, size, name, (args.host, args.port)) as server:
        print(f"{args.checkpoint} at {server.url}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended")
