"""What base and new say to each other: lines of JSON, understood by commits that may lie far apart.

The first line that `gate-side` reads is an object with `config` (settings that are not the defaults), `measured`
(costs by method, as the other side measured them when it began) and `slower` (methods to be slowed down, by
a share).
Then every line is one of

- `{"do": "hello"}` -> `{"protocol", "files", "run", "questions"}`; `files`: where bench and methods were imported from
- `{"do": "answer", "question", "turn", "round", "label"}` -> `{"going"}`: one method begins to answer a turn
- `{"do": "go on"}` -> `{"going"}`: it takes a few more steps; `going` is false once the answer has ended
- `{"do": "close", "question", "turn", "round"}` -> `{"turns"}`: everybody has answered; the audited records

Whatever is added must stay readable by older code; PROTOCOL is raised where it cannot be.
"""

PROTOCOL = 3
