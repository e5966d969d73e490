#!/usr/bin/env bash
# Expected: LabelInterface.validate_task of Label Studio's own SDK says whether a labelled task fits a labelling interface, as its name says.
# Happens: label-studio-sdk 2.1.2 returns True or False for a task's data alone, and raises a TypeError for every task that has annotations or
# predictions, valid ones too: it calls validate_annotation and validate_prediction without the annotation.
# Around it: what label/studio --to writes was checked part by part, by validate_task for the data, validate_annotation and validate_region
# (docs/datasets.md).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q label-studio-sdk==2.1.2
cat > "$folder/task.py" <<'PY'
from importlib.metadata import version

from label_studio_sdk.label_interface import LabelInterface

print("label-studio-sdk", version("label-studio-sdk"))
interface = LabelInterface(
    '<View><Image name="image" value="$image"/>'
    '<Choices name="kind" toName="image"><Choice value="cat"/><Choice value="dog"/></Choices></View>'
)
region = {"id": "r1", "from_name": "kind", "to_name": "image", "type": "choices", "value": {"choices": ["cat"]}}
data, labelled = {"image": "http://localhost/1.jpg"}, [{"result": [region]}]
parts = (
    interface.validate_task({"data": data}),
    interface.validate_annotation(labelled[0]),
    interface.validate_region(region),
)
print("data alone, annotation, region:", *parts)
errors = []
for key in ("annotations", "predictions"):
    try:
        print(f"with {key}:", interface.validate_task({"data": data, key: labelled}))
    except TypeError as error:
        errors.append(error)
        print(f"with {key}: TypeError: {error}")
if parts != (True, True, True):
    raise SystemExit("a part is refused: this is something else")
if len(errors) != 2:
    raise SystemExit("it has changed")
print("as described: a whole task cannot be validated")
PY
"$folder/venv/bin/python" "$folder/task.py"
