"""How weights leave the learner: through vLLM's weight-transfer interface, whatever carries the bytes.

    publish(version) ─► every rank iterates the source in lockstep (ZeRO-3 gathers by bucket)
                        rank 0 also drives the engines: start ─► buckets ─► finish(version)

The learner waits for the engines here, up to a deadline; the engines wait for nobody but freeze their requests.
`nccl` and `ipc` are vLLM's own trainer engines, `shared_memory` is ours.
"""
