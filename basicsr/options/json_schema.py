"""The JSON schema of option files, for editors: python -m basicsr.options.json_schema > options/schema.json."""

from __future__ import annotations

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from basicsr.options.sections import RunOptions


class _Untitled(GenerateJsonSchema):
    """Without a title for every key, which would only repeat its name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema() -> dict[str, Any]:
    # Users' own keys, for anchors: their content is not checked.
    return {**RunOptions.model_json_schema(schema_generator=_Untitled), 'patternProperties': {'^x-': {}}}


if __name__ == '__main__':
    print(json.dumps(json_schema(), indent=1, sort_keys=True))
