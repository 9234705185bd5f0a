"""One conversation with a model, in whatever words it was asked for.

The internal form of a request is Converse's members (system, messages, content blocks, tools, inference settings), and
of an answer Converse's result and events; AWS's service model defines and checks both. What other dialects can ask for
and Converse has no member for goes into `additionalModelRequestFields` under the names that `converse.FIELDS` lists.
So there is one reader and one writer for each dialect instead of one for each pair of dialects:

    chat, responses, claude, nova   read: body → Converse members      write: Converse result or events → body
    llama, mistral, titan           read: body → Generation (prompt)   write: Completion or Delta → body
    converse                        Converse members → Generation      Delta, Completion → events, result
    upstream                        Generation → what an engine is asked; what it answers → Delta, Completion

Invariants:
- A reader refuses what it does not know; nothing that is asked for is dropped silently.
- Whether a model can do what is asked is decided in one place, `model.Generation.wants` against a model's features.
"""
