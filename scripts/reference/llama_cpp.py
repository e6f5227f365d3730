"""llama.cpp on one GGUF file, through the server in the xllamacpp wheel (it listens on 127.0.0.1 only). Not run by itself."""
import json, urllib.request


class LlamaCpp:
    """Tokenisation, chat templates and completions as llama.cpp does them."""

    def __init__(self, gguf, context=1024, threads=2):
        import xllamacpp
        params = xllamacpp.CommonParams()
        params.model.path = str(gguf)
        params.n_ctx, params.n_parallel, params.warmup, params.port, params.verbosity = context, 1, False, 0, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.use_jinja, params.prefill_assistant = True, False
        self.server = xllamacpp.Server(params)
        self.build = xllamacpp.get_system_info()

    def post(self, path, body):
        request = urllib.request.Request(self.server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request, timeout=300))

    def tokenize(self, text):
        """Ids of `text`, with special tokens in it read as such, nothing added in front or behind."""
        return self.post("/tokenize", {"content": text, "add_special": False, "parse_special": True})["tokens"]

    def apply_template(self, messages, add_generation_prompt=True):
        body = {"messages": messages, "add_generation_prompt": add_generation_prompt}
        return self.post("/apply-template", body)["prompt"]
