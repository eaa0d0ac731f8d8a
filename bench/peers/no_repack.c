// Preloaded into the peer so that llama.cpp computes Q4_0 from the mapping itself.
//
// By default its CPU backend repacks Q4_0 into anonymous memory while loading: a copy of the whole
// model, which a memory limit below the model's size turns into an out-of-memory kill. Its own
// command line has --no-repack for this; the npm package has no such option. This hides the list of
// extra buffer types from libllama, which is what --no-repack does. cc -shared -fPIC -o
// no_repack.so no_repack.c
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

typedef void *(*GetProcAddress)(void *registry, const char *name);

void *ggml_backend_reg_get_proc_address(void *registry, const char *name) {
  if (strcmp(name, "ggml_backend_dev_get_extra_bufts") == 0) return NULL;
  // The caller's dependencies include the real one; RTLD_NEXT does not see what Node loaded
  // privately.
  Dl_info caller;
  if (!dladdr(__builtin_return_address(0), &caller)) return NULL;
  void *library = dlopen(caller.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  GetProcAddress real =
      library ? (GetProcAddress)dlsym(library, "ggml_backend_reg_get_proc_address") : NULL;
  return real ? real(registry, name) : NULL;
}
