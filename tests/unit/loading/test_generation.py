"""generation_config.json becomes the sampling defaults of requests that say nothing."""

from pathlib import Path

import pytest

from nsa_serve.model.loading.generation import GenerationDefaults, read_generation


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{}", GenerationDefaults()),
        ('{"eos_token_id": 2}', GenerationDefaults(eos_token_ids=(2,))),
        ('{"eos_token_id": [7, 2, 7]}', GenerationDefaults(eos_token_ids=(2, 7))),
        (
            '{"temperature": 0.6, "top_p": 0.9, "top_k": 50, "do_sample": true, "max_length": 9}',
            GenerationDefaults(temperature=0.6, top_p=0.9, top_k=50),
        ),
        (
            '{"temperature": 0.6, "do_sample": false, "repetition_penalty": 1.1}',
            GenerationDefaults(temperature=0.0, repetition_penalty=1.1),
        ),
    ],
)
def test_fields_that_are_read(tmp_path: Path, content: str, expected: GenerationDefaults) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    assert read_generation(tmp_path) == expected


def test_end_tokens_of_other_files_are_added(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert read_generation(tmp_path, [3, 5], None, 1).eos_token_ids == (1, 3, 5)
