"""The intermediate representation: program, types, ops, stage specifications, verifier, ranges, text form, graph edits."""
