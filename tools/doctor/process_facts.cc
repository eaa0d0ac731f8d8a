// ProbeProcess: what takes a try to learn.
#include <linux/io_uring.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "compute/cpu_backend.h"
#include "doctor/machine_checks.h"

namespace moraine {

ProcessFacts ProbeProcess() {
  ProcessFacts facts;
  io_uring_params params = {};
  const long ring = syscall(__NR_io_uring_setup, 1, &params);
  facts.io_uring_error = ring >= 0 ? 0 : errno;
  if (ring >= 0) close(static_cast<int>(ring));

  for (const Isa isa : kAllIsas) {
    if (ChooseIsa(IsaName(isa)).ok()) facts.isas.push_back(IsaName(isa));
  }
  const Result<Isa> chosen = ChooseIsa();
  if (chosen.ok()) {
    facts.chosen_isa = IsaName(*chosen);
  } else {
    facts.isa_error = chosen.status().message();
  }
  return facts;
}

}  // namespace moraine
