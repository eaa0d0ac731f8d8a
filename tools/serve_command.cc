// moraine serve: OpenAI's API over a store.
//
// The server listens before the model is loaded, so that whoever starts it can watch /health instead of
// guessing; EngineService stands between the two and becomes ready once.
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <memory>
#include <thread>

#include "base/bytes.h"
#include "base/log.h"
#include "budget_control.h"
#include "commands.h"
#include "common_options.h"
#include "engine_session.h"
#include "server/http_server.h"
#include "service_manager.h"

namespace moraine {
namespace {

struct ServeArguments {
  RunnerArguments runner;
  HttpServerOptions server;
  uint32_t queue_limit = 8;
  // Longer than a typical answer; an init system kills after 90 s.
  int grace_seconds = 30;
  bool no_warm = false;
  std::string prefix_disk_budget = "8GiB";
  std::string budget_file;
  bool follow_pressure = false;
};

class EngineService final : public GenerationService {
 public:
  // `known`: what can be said before the engine is there.
  explicit EngineService(ModelInfo known) : known_(std::move(known)) {}

  // Once, from any thread. `engine` outlives all requests.
  void SetEngine(Engine* engine) { engine_.store(engine); }

  bool ready() const override { return engine_.load() != nullptr; }
  ModelInfo model_info() const override {
    ModelInfo info = ready() ? engine().model_info() : known_;
    info.created_unix = known_.created_unix;  // must not change when loading ends
    return info;
  }
  SamplingOptions default_sampling() const override { return engine().default_sampling(); }
  std::string chat_template() const override { return engine().text().chat_template_source(); }
  Result<RenderedPrompt> RenderChat(nlohmann::ordered_json context) const override {
    return engine().text().RenderChat(std::move(context));
  }
  Result<std::vector<int32_t>> EncodePrompt(const RenderedPrompt& prompt) const override {
    return engine().text().tokenizer().EncodeSegments(prompt.segments);
  }
  Result<std::vector<int32_t>> EncodeText(std::string_view text,
                                          EncodeOptions options) const override {
    return engine().text().tokenizer().Encode(text, options);
  }
  std::shared_ptr<const TokenTrie> token_trie() const override {
    return engine().text().token_trie(engine().model_info().vocab_size);
  }
  std::string DecodeTokens(std::span<const int32_t> tokens) const override {
    return engine().text().tokenizer().Decode(tokens);
  }
  std::string TokenBytes(int32_t token) const override {
    return std::string(engine().text().tokenizer().TokenBytes(token));
  }
  Result<std::function<void()>> Submit(GenerationRequest request) override {
    ASSIGN_OR_RETURN(std::shared_ptr<Generation> generation, engine().Submit(std::move(request)));
    return std::function<void()>([generation] { generation->Cancel(); });
  }
  EngineStats Stats() const override { return engine().Stats(); }
  std::shared_ptr<ResidencyFeed> residency_feed() const override {
    return engine().residency_feed();
  }
  Result<RamBudgetRange> SetRamBudget(const std::string& text) override {
    ASSIGN_OR_RETURN(const RamBudget budget, ParseRamBudget(text));
    RETURN_IF_ERROR(engine().SetRamBudget(budget));
    return engine().ram_budget_range();
  }

 private:
  Engine& engine() const {
    Engine* engine = engine_.load();
    CHECK(engine != nullptr, "the service is not ready");
    return *engine;
  }

  const ModelInfo known_;
  std::atomic<Engine*> engine_{nullptr};
};

Result<std::unique_ptr<Engine>> OpenEngine(const ServeArguments& a) {
  EngineOptions options;
  ASSIGN_OR_RETURN(options.runner, FinishRunnerOptions(a.runner));
  if (!a.budget_file.empty()) {
    ASSIGN_OR_RETURN(options.runner.ram_budget, ReadBudgetFile(a.budget_file));
  }
  options.queue_limit = a.queue_limit;
  auto disk_budget = ParseByteSize(a.prefix_disk_budget);
  if (!disk_budget.ok()) return disk_budget.status().WithContext("--prefix-cache-disk-budget");
  options.runner.prefix_disk.budget_bytes = *disk_budget;
  return OpenEngine(std::move(options));
}

// Opening reads the index only; the same errors as the engine's, but before anything listens.
Result<ModelInfo> KnownModel(const std::string& store_directory) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Store> store,
                   Store::Open(store_directory, StoreMode::kReadOnly));
  ModelInfo known;
  known.name = store->manifest().source.description;
  known.created_unix = std::time(nullptr);
  return known;
}

void WarnIfOpen(const std::string& url, const AccessOptions& access) {
  const bool loopback = url.starts_with("http://127.") || url.starts_with("http://[::1]");
  if (!loopback && access.api_key.empty()) {
    LOG_WARN("{} can be reached from other machines and no --api-key is set", url);
  }
}

// Shells give 1024 descriptors and allow more. What is not there for connections is not promised: accepting
// one too many would stop the model's files from being opened.
void FitConnections(HttpServerOptions* server) {
  constexpr rlim_t kOthers = 256;  // store, catalogue, io_uring, threads
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return;
  const rlim_t room = limit.rlim_cur > 2 * kOthers ? limit.rlim_cur - kOthers : limit.rlim_cur / 2;
  server->connection_limit =
      static_cast<uint32_t>(std::min<rlim_t>(server->connection_limit, room));
}

// The signals that end the server, and SIGUSR1, with which loading says that it has failed. Blocked in
// all threads from before the first one starts, and taken by sigwait: no handler, nothing to be careful
// about in one. SIGHUP is ours only with a budget file; else it ends the server as it ends any process.
sigset_t ServerSignals(const ServeArguments& a) {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) sigaddset(&signals, signal);
  if (!a.budget_file.empty()) sigaddset(&signals, SIGHUP);
  return signals;
}

void ExitAtSecondSignal(sigset_t signals) {
  sigdelset(&signals, SIGHUP);
  std::thread([signals] {
    int signal = 0;
    sigwait(&signals, &signal);
    _exit(128 + signal);
  }).detach();
}

Status Serve(ServeArguments a) {
  FitConnections(&a.server);
  ASSIGN_OR_RETURN(a.server.listening_socket, InheritedSocket());
  ASSIGN_OR_RETURN(ModelInfo known, KnownModel(a.runner.options.store_directory));
  const sigset_t signals = ServerSignals(a);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);

  EngineService service(std::move(known));
  // Declared before the server: requests in flight refer to it until the server is gone.
  std::unique_ptr<Engine> engine;
  ASSIGN_OR_RETURN(const std::unique_ptr<HttpServer> server, HttpServer::Start(a.server, &service));
  WarnIfOpen(server->url(), a.server.api.access);
  LOG_INFO("listening on {}, loading the model", server->url());
  NotifyServiceManager("STATUS=loading the model");

  Status loaded;
  // After the engine: it stops using it before that goes.
  BudgetControl budget(a.budget_file, a.follow_pressure);
  const pthread_t main_thread = pthread_self();
  std::thread loader([&] {
    auto opened = OpenEngine(a);
    loaded = opened.status();
    if (loaded.ok()) {
      engine = std::move(*opened);
      if (!a.no_warm) loaded = WarmEngine(*engine);
    }
    if (!loaded.ok()) {
      pthread_kill(main_thread, SIGUSR1);
      return;
    }
    service.SetEngine(engine.get());
    budget.Start(engine.get());
    std::printf("moraine serves %s at %s/v1\n", engine->model_info().name.c_str(),
                server->url().c_str());
    std::fflush(stdout);
    NotifyServiceManager("READY=1\nSTATUS=serving " + engine->model_info().name + " at " + server->url());
  });

  int signal = 0;
  do {
    sigwait(&signals, &signal);
    if (signal == SIGHUP) budget.Reload();
  } while (signal == SIGHUP);
  ExitAtSecondSignal(signals);
  if (signal != SIGUSR1 && !service.ready()) {
    // Loading cannot be interrupted, and has nothing to lose.
    LOG_INFO("stopped while loading");
    _exit(0);
  }
  loader.join();
  NotifyServiceManager("STOPPING=1\nSTATUS=running requests may finish");
  if (signal != SIGUSR1) {
    LOG_INFO("stopping: what runs may finish for {} s; interrupt again to exit at once",
             a.grace_seconds);
  }
  server->Shutdown(std::chrono::seconds(a.grace_seconds));
  if (loaded.ok()) KeepStatistics(*engine);
  return loaded;
}

}  // namespace

void RegisterServeCommand(CLI::App& app, int* exit_code) {
  CLI::App* command = app.add_subcommand("serve", "Serve a model over HTTP with OpenAI's API");
  auto a = std::make_shared<ServeArguments>();
  AddRunnerArguments(command, &a->runner);
  AddGpuArguments(command, &a->runner);
  AccessOptions* access = &a->server.api.access;
  command->add_option("--host", a->server.host, "address to listen on; 0.0.0.0 for all")
      ->capture_default_str();
  command->add_option("--port", a->server.port, "TCP port to listen on; 0: any free one")
      ->check(WholeNumber(UINT16_MAX))->capture_default_str();
  command->add_option("--api-key", access->api_key, "asked of every client (default: none)")
      ->envname("MORAINE_API_KEY");
  command->add_option("--allowed-host", access->allowed_hosts,
                      "name under which clients may reach the server, beside localhost");
  command->add_option("--cors-origin", access->cors_origins,
                      "origin whose web pages may use the server, such as https://example.org");
  a->runner.options.max_sequences = 0;  // chosen
  command
      ->add_option("--parallel", a->runner.options.max_sequences,
                   "requests that are computed together; they share --max-context (default, and 0: 8, of "
                   "models with recurrent state 4)")
      ->check(CLI::Range(0, 256));
  command->add_option("--queue", a->queue_limit, "requests that may wait; more get 429")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_option("--grace", a->grace_seconds, "seconds for running requests at shutdown")
      ->check(CLI::Range(0, 3600))
      ->capture_default_str();
  command->add_option("--prefix-cache-dir", a->runner.options.prefix_disk.directory,
                      "directory where prompts' keys and values are kept, too, for when memory has lost them and "
                      "for the next start (default: none)");
  command->add_option("--prefix-cache-disk-budget", a->prefix_disk_budget,
                      "most that they take there, for each model")
      ->capture_default_str();
  command->add_flag("--no-warm", a->no_warm, "start with an empty cache");
  command->add_option("--ram-budget-max", a->runner.ram_budget_max,
                      "highest budget that may be set while serving (default: --ram-budget)");
  command->add_option("--ram-budget-file", a->budget_file,
                      "file with the RAM budget in its first line; read again at SIGHUP");
  command->add_flag("--follow-pressure", a->follow_pressure,
                    "give memory back under memory pressure (PSI), take it again when that is over");
  command->add_flag("--admin", a->server.api.admin,
                    "POST /admin/ram-budget: from this machine, or with the API key");
  NameEnvironment(command);
  command->callback([a, exit_code] {
    a->server.api.fingerprint = "moraine-" MORAINE_VERSION;
    const Status status = Serve(*a);
    if (!status.ok()) *exit_code = PrintError(status);
  });
}

}  // namespace moraine
