/* Runs a SavedModel with TensorFlow's own C++ loader, through its C API and without Python.

   loader FOLDER OUTPUT FILE INPUT=FILE:d0,d1,... [INPUT=FILE:...]

   OUTPUT and INPUT are tensors of the graph such as serve_pose2d:0; the files hold float32 as the
   machine has it. Loads the graph tagged `serve`, as TensorFlow Serving does, runs it once, and
   writes OUTPUT to FILE and its shape to standard output. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/c_api.h"

enum { MAX_INPUTS = 8, MAX_DIMS = 8 };

static void fail(const char* what, const char* why) {
  fprintf(stderr, "%s: %s\n", what, why);
  exit(1);
}

static void check(const TF_Status* status, const char* what) {
  if (TF_GetCode(status) != TF_OK) fail(what, TF_Message(status));
}

static TF_Output find(TF_Graph* graph, const char* tensor) {
  char name[256];
  const char* colon = strrchr(tensor, ':');
  size_t length = colon ? (size_t)(colon - tensor) : strlen(tensor);
  if (length >= sizeof name) fail(tensor, "name too long");
  memcpy(name, tensor, length);
  name[length] = '\0';
  TF_Output output = {TF_GraphOperationByName(graph, name), colon ? atoi(colon + 1) : 0};
  if (!output.oper) fail(tensor, "not in the graph");
  return output;
}

static TF_Tensor* read_tensor(const char* path, char* dims) {
  int64_t shape[MAX_DIMS];
  int rank = 0;
  size_t bytes = sizeof(float);
  for (char* one = strtok(dims, ","); one; one = strtok(NULL, ",")) {
    if (rank == MAX_DIMS) fail(path, "too many dimensions");
    shape[rank] = atoll(one);
    bytes *= (size_t)shape[rank++];
  }
  TF_Tensor* tensor = TF_AllocateTensor(TF_FLOAT, shape, rank, bytes);
  FILE* file = fopen(path, "rb");
  if (!file) fail(path, "cannot be opened");
  if (fread(TF_TensorData(tensor), 1, bytes, file) != bytes) fail(path, "too short");
  fclose(file);
  return tensor;
}

static void write_tensor(const TF_Tensor* tensor, const char* path) {
  if (TF_TensorType(tensor) != TF_FLOAT) fail(path, "the output is no float32");
  FILE* file = fopen(path, "wb");
  size_t bytes = TF_TensorByteSize(tensor);
  if (!file || fwrite(TF_TensorData(tensor), 1, bytes, file) != bytes || fclose(file))
    fail(path, "cannot be written");
  for (int axis = 0; axis < TF_NumDims(tensor); ++axis)
    printf("%lld ", (long long)TF_Dim(tensor, axis));
  printf("\n");
}

int main(int argc, char** argv) {
  if (argc < 5 || argc > 4 + MAX_INPUTS) fail(argv[0], "FOLDER OUTPUT FILE INPUT=FILE:d0,d1,...");
  TF_Status* status = TF_NewStatus();
  TF_Graph* graph = TF_NewGraph();
  TF_SessionOptions* options = TF_NewSessionOptions();
  const char* tags[] = {"serve"};
  TF_Session* session =
      TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1, graph, NULL, status);
  check(status, argv[1]);

  TF_Output inputs[MAX_INPUTS];
  TF_Tensor* values[MAX_INPUTS];
  int count = argc - 4;
  for (int i = 0; i < count; ++i) {
    char* path = strchr(argv[i + 4], '=');
    char* dims = path ? strrchr(path, ':') : NULL;
    if (!dims) fail(argv[i + 4], "must be INPUT=FILE:d0,d1,...");
    *path++ = *dims++ = '\0';
    inputs[i] = find(graph, argv[i + 4]);
    values[i] = read_tensor(path, dims);
  }
  TF_Output output = find(graph, argv[2]);
  TF_Tensor* result = NULL;
  TF_SessionRun(session, NULL, inputs, values, count, &output, &result, 1, NULL, 0, NULL, status);
  check(status, argv[2]);
  write_tensor(result, argv[3]);

  TF_DeleteTensor(result);
  for (int i = 0; i < count; ++i) TF_DeleteTensor(values[i]);
  TF_CloseSession(session, status);
  TF_DeleteSession(session, status);
  TF_DeleteSessionOptions(options);
  TF_DeleteGraph(graph);
  TF_DeleteStatus(status);
  return 0;
}
