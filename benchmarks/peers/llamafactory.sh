#!/usr/bin/env bash
# LLaMA-Factory in an environment of its own: benchmarks/peers/llamafactory.sh FOLDER makes FOLDER/bin/python, and fetches
# its demo data into FOLDER/data.
#
# llamafactory 0.9.5 asks for a torch and a torchaudio that disagree, so it is installed without its dependencies, and these beside
# it, at the newest versions that it allows. torchvision is not needed for text; torchaudio is imported, and an empty module does.
set -euo pipefail
folder=${1:?give the folder of the environment}
python=${PYTHON:-python3.11}
"$python" -m venv "$folder"
pip=("$folder/bin/python" -m pip --quiet --disable-pip-version-check)
"${pip[@]}" install torch==2.13.0
"${pip[@]}" install --no-deps llamafactory==0.9.5
"${pip[@]}" install transformers==5.6.0 datasets==4.0.0 peft==0.18.1 trl==0.24.0 accelerate==1.11.0 torchdata==0.11.0 \
  omegaconf==2.4.0 einops==0.8.2 fire==0.7.1 av==16.0.0 "tyro<0.9" modelscope sentencepiece tiktoken scipy hf-transfer matplotlib
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
: > "$site/torchaudio.py"
"${pip[@]}" install hatchling  # reads the archive's metadata
"${pip[@]}" download --no-deps --no-binary :all: --no-build-isolation --dest "$folder/source" llamafactory==0.9.5
mkdir -p "$folder/data"
tar --extract --file "$folder"/source/llamafactory-0.9.5.tar.gz --directory "$folder/data" --strip-components 2 llamafactory-0.9.5/data
"$folder/bin/python" -c 'import llamafactory.data; print("ready:", llamafactory.__file__)'
