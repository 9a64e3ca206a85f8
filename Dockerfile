# The command alpnet in a container, on a CPU or, with `docker run --gpus all`, a GPU:
#   docker build -t alpnet .
#   docker run --rm -v "$PWD:/scans" alpnet segment scans --support labelled.nii.gz label.nii.gz --output results
FROM python:3.11-slim
WORKDIR /opt/fewshot_alpnet
COPY . .
RUN pip install --no-cache-dir ".[dicom,formats]"
WORKDIR /scans
ENTRYPOINT ["alpnet"]
CMD ["--help"]
