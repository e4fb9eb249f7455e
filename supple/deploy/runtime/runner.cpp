// Runs a bundle's policy on a robot over UDP: holds the control rate, damps when in doubt, logs.
//
// The log has a line per tick. A state's age counts from the robot's own clock when it sent it, and
// half of the time that a hello and its answer took at best is added.
//
//   supple_runner BUNDLE --port P [--host 127.0.0.1] [--seconds 20] [--policy c|onnx] [--log FILE]
//                 [--unbounded allow]
//
// Exit status: 0 the time is over or it was stopped, 1 the robot was lost, its state stayed bad or the
// control rate was not held, 2 refused.

#include <csignal>
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "contract.h"
#include "controller.h"
#include "link.h"

namespace {

using supple::Contract;
using supple::Kind;

constexpr double kHelloEvery = 0.05, kHelloFor = 10.0;  // [s]
constexpr int kHellos = 5;                              // from the first answer on
constexpr double kGiveUpAfter = 1.0;                    // of damping, in twice that time [s]
constexpr double kRecent = 1.0;                         // over which overruns count [s]
constexpr std::size_t kLeastTicks = 10;                 // that they count over, at low rates
constexpr double kMostMissed = 0.2;                     // of ticks that overrun, of time without any
constexpr const char* kRemedy = "close what else runs, or give it a core";
constexpr double kDrift = 1e-4;  // two clocks part by less than this [s/s]

volatile std::sig_atomic_t stopped = 0;

double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

void sleep_until(double moment) {
  timespec time;
  time.tv_sec = static_cast<time_t>(moment);
  time.tv_nsec = static_cast<long>(1e9 * (moment - static_cast<double>(time.tv_sec)));
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, nullptr) != 0 && !stopped) {
  }
}

bool all_finite(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
}

double percentile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[static_cast<std::size_t>(share * static_cast<double>(values.size() - 1))];
}

std::string milliseconds(double seconds) {
  return std::to_string(std::lround(1e3 * seconds)) + " ms";
}

struct Options {
  std::string bundle, host = "127.0.0.1", policy = "c", log;
  int port = 0;
  double seconds = 20;
  bool unbounded = false;
};

double number(const std::string& name, const std::string& text, double most) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !(value > 0 && value <= most))
    throw std::runtime_error(name + " expects a number above 0, at most " +
                             std::to_string(static_cast<long>(most)) + ", got '" + text + "'");
  return value;
}

Options parse(int argc, char** argv) {
  Options options;
  std::map<std::string, std::string> given;
  for (int i = 2; i + 1 < argc; i += 2) given[argv[i]] = argv[i + 1];
  if (argc < 2 || argc % 2 != 0)
    throw std::runtime_error("usage: supple_runner BUNDLE --port P [--host H] [--seconds S]"
                             " [--policy c|onnx] [--log FILE] [--unbounded allow]");
  options.bundle = argv[1];
  for (const auto& [name, value] : given) {
    if (name == "--port") options.port = static_cast<int>(number(name, value, 65535));
    else if (name == "--host") options.host = value;
    else if (name == "--seconds") options.seconds = number(name, value, 1e9);
    else if (name == "--policy") options.policy = value;
    else if (name == "--log") options.log = value;
    else if (name == "--unbounded" && value == "allow") options.unbounded = true;
    else throw std::runtime_error("unknown option " + name + " " + value);
  }
  if (options.port <= 0) throw std::runtime_error("--port is missing");
  return options;
}

struct Robot {
  std::vector<std::string> channels;
  double delay = std::numeric_limits<double>::infinity();  // of a packet, one way [s]
};

// Asks until the robot describes itself, and refuses one that is not the manifest's or too far away.
Robot shake_hands(supple::Link& link, const Contract& contract) {
  supple::Packet packet;
  Robot found;
  std::vector<double> asked;
  const double begin = now();
  for (int left = kHellos; left > 0 && now() - begin < kHelloFor && !stopped;) {
    asked.push_back(now());
    link.send(Kind::kHello, static_cast<std::uint32_t>(asked.size() - 1), asked.back(), {});
    for (bool newest = false; !newest && !stopped && now() - asked.back() < kHelloEvery;) {
      link.wait(kHelloEvery);
      while (link.receive(packet)) {
        if (packet.head.kind != static_cast<std::uint16_t>(Kind::kDescription) ||
            packet.head.sequence >= asked.size())
          continue;
        const double way = (now() - asked[packet.head.sequence]) / 2;
        const supple::Json robot = supple::JsonReader::read(packet.text, "the robot's description");
        supple::require_equal(contract.robot_joints, robot.at("joints").strings(), "joint",
                              "on the robot");
        if (robot.at("control_mode").text != contract.control_mode)
          throw std::runtime_error("the robot takes " + robot.at("control_mode").text +
                                   " commands, the policy gives " + contract.control_mode);
        found.channels = robot.at("channels").strings();
        found.delay = std::min(found.delay, way);
        newest = packet.head.sequence + 1 == asked.size();
      }
    }
    if (std::isfinite(found.delay)) --left;
  }
  if (!std::isfinite(found.delay))
    throw std::runtime_error(stopped ? "stopped before a robot answered" : "no robot answers");
  if (found.delay > contract.most_delay)
    throw std::runtime_error("a packet takes " + milliseconds(found.delay) + " to the robot, expected" +
                             " at most " + milliseconds(contract.most_delay) +
                             ": shorten the way, or let the robot answer each hello by its sequence");
  return found;
}

// Puts the robot's channels into the policy's order, its own actions among them, older frames from
// memory.
class Observer {
 public:
  Observer(const Contract& contract, const std::vector<std::string>& channels)
      : ages_(contract.ages), shown_(contract.last_actions), clips_(contract.clips_actions) {
    places_.resize(ages_.size(), kOwn);
    for (std::size_t i = 0; i < shown_.size(); ++i) {
      places_[shown_[i].observation] = channels.size() + i;
      kept_ = std::max(kept_, shown_[i].steps);
    }
    for (std::size_t i = 0; i < places_.size(); ++i)
      if (places_[i] == kOwn) places_[i] = supple::index_of(contract.channels[i], channels);
    frames_ = 1 + *std::max_element(ages_.begin(), ages_.end());
  }
  void forget() {
    history_.clear();
    actions_.clear();
  }
  void observe(const std::vector<float>& state, std::vector<float>& observation) {
    std::vector<float> frame = state;
    for (const supple::LastAction& each : shown_) {
      const bool any = each.steps <= actions_.size();
      frame.push_back(each.shown(any ? actions_[each.steps - 1][each.action] : 0.0f));
    }
    history_.push_front(frame);
    while (history_.size() < frames_) history_.push_back(frame);  // the first frame repeats
    history_.resize(frames_);
    for (std::size_t i = 0; i < places_.size(); ++i) observation[i] = history_[ages_[i]][places_[i]];
  }
  void acted(std::vector<float> action) {
    if (clips_)
      for (float& each : action) each = std::clamp(each, -1.0f, 1.0f);
    actions_.push_front(std::move(action));
    if (actions_.size() > kept_) actions_.pop_back();
  }

 private:
  static constexpr std::size_t kOwn = std::numeric_limits<std::size_t>::max();
  std::vector<std::size_t> ages_, places_;
  std::vector<supple::LastAction> shown_;
  bool clips_;
  std::size_t frames_ = 1, kept_ = 0;
  std::deque<std::vector<float>> history_, actions_;
};

// The robot's clock in our own: the quickest packet so far is taken to have come within `delay`.
// What is late by more than others is old, however steadily it comes.
class RobotClock {
 public:
  explicit RobotClock(double delay) : delay_(delay) {}
  double ours(double sent, double arrived) {
    ahead_ = std::min(ahead_ + kDrift * (arrived - last_), arrived - sent);
    last_ = arrived;
    return sent + ahead_ - delay_;
  }

 private:
  double delay_, ahead_ = std::numeric_limits<double>::infinity(), last_ = 0;
};

// Amounts at moments of the last seconds, and at so many moments at least.
class Recent {
 public:
  Recent(double seconds, std::size_t least) : seconds_(seconds), least_(least) {}
  void add(double moment, double amount) {
    found_.emplace_back(moment, amount);
    while (found_.size() > least_ && found_.front().first < moment - seconds_) found_.pop_front();
  }
  std::size_t size() const { return found_.size(); }
  double total() const {
    double sum = 0;
    for (const auto& each : found_) sum += each.second;
    return sum;
  }
  double largest() const {
    double most = 0;
    for (const auto& each : found_) most = std::max(most, each.second);
    return most;
  }

 private:
  double seconds_;
  std::size_t least_;
  std::deque<std::pair<double, double>> found_;
};

// Brakes the robot whatever ends the run; some of these packets may get lost.
struct Brake {
  supple::Link& link;
  const std::vector<float>& gains;
  const int& ticks;
  ~Brake() {
    for (int i = 0; i < 3; ++i)
      link.send(Kind::kDamp, static_cast<std::uint32_t>(ticks), now(), gains);
  }
};

struct Statistics {
  int ticks = 0, damped = 0, stale = 0, not_finite = 0, overran = 0;
  std::uint32_t lost = 0;
  std::vector<double> late, step;  // [s]
};

int run(const Options& options) {
  const Contract contract = supple::read_contract(options.bundle);
  if (!options.unbounded) supple::require_bounds(contract);
  // Before the robot hears of it: its states would wait while a graph is read.
  const auto controller =
      supple::make_controller(options.policy, options.bundle, contract.onnx_digest);
  std::FILE* log = options.log.empty() ? nullptr : std::fopen(options.log.c_str(), "w");
  if (!options.log.empty() && !log) throw std::runtime_error("cannot write " + options.log);
  if (log) std::fprintf(log, "tick,time_s,late_us,state,state_age_ms,mode,step_us\n");
  supple::Link link(options.host, options.port);
  const Robot robot = shake_hands(link, contract);
  Observer observer(contract, robot.channels);

  const std::size_t count = contract.joints.size();
  std::vector<float> state(robot.channels.size()), observation(contract.observations.size());
  std::vector<float> action(SUPPLE_POLICY_ACTIONS), command(count), sent(count), gains(count);
  for (std::size_t i = 0; i < count; ++i)
    gains[contract.to_robot[i]] = static_cast<float>(contract.damping[i]);

  Statistics found;
  const Brake brake{link, gains, found.ticks};
  RobotClock clock(robot.delay);
  supple::Packet packet;
  // Whether a tick overran, how long nothing ran [s], how long the robot was braked [s].
  Recent overruns(kRecent, kLeastTicks), pauses(2 * kRecent, 0), braked(2 * kGiveUpAfter, 0);
  std::string lost;  // why it gave up
  bool seen = false, was_damped = false;
  std::size_t odd_size = 0;
  std::uint32_t newest = 0;
  const double started = now();
  double sent_at = 0, begin = started, last = started;
  // Of what came during the hand-shake only the newest state counts.
  for (double due = started; !stopped; due += contract.control_dt) {
    sleep_until(due);
    const double woke = now();
    while (link.receive(packet)) {
      if (packet.head.kind != static_cast<std::uint16_t>(Kind::kState)) continue;
      if (packet.numbers.size() != state.size()) {
        odd_size = packet.numbers.size();
        continue;
      }
      // Delayed and overtaken; the difference of counters that may have wrapped.
      if (seen && static_cast<std::int32_t>(packet.head.sequence - newest) <= 0) continue;
      if (seen) found.lost += packet.head.sequence - newest - 1;
      newest = packet.head.sequence;
      state = packet.numbers;
      sent_at = clock.ours(packet.head.time, woke);
      if (!seen) begin = woke;
      seen = true;
    }
    if (!seen) {
      if (woke - started > kHelloFor)
        throw std::runtime_error(
            odd_size ? "the robot's states have " + std::to_string(odd_size) + " numbers, expected " +
                           std::to_string(state.size())
                     : "the robot sends no state");
      continue;
    }
    if (woke - begin >= options.seconds) break;

    // By time, not ticks: few of them say that the robot stands braked where ticks are held up.
    if (was_damped) braked.add(woke, woke - last);
    last = woke;
    const double age = woke - sent_at;
    const bool bad = !all_finite(state);
    bool stale = !(age <= contract.stale_after);
    bool damp = stale || bad;
    double taken = 0;
    if (!damp) {
      if (was_damped) {  // an episode of its own: nothing from before is remembered
        observer.forget();
        controller->reset();
      }
      observer.observe(state, observation);
      const double before = now();
      damp = !controller->step(observation, action, command) || !all_finite(command);
      observer.acted(action);
      taken = now() - before;
      found.step.push_back(taken);
      for (std::size_t i = 0; i < count; ++i)
        sent[contract.to_robot[i]] =
            std::clamp(command[i], static_cast<float>(contract.command_low[i]),
                       static_cast<float>(contract.command_high[i]));
      stale = !(now() - sent_at <= contract.stale_after);  // it may have been held up
      damp = damp || stale;
    }
    if (damp) {
      link.send(Kind::kDamp, static_cast<std::uint32_t>(found.ticks), woke, gains);
    } else {
      link.send(Kind::kCommand, static_cast<std::uint32_t>(found.ticks), woke, sent);
    }
    was_damped = damp;
    found.ticks += 1;
    found.damped += damp;
    found.stale += stale;
    found.not_finite += bad;
    found.late.push_back(woke - due);
    if (log)
      std::fprintf(log, "%d,%.6f,%.1f,%u,%.3f,%s,%.2f\n", found.ticks - 1, woke - begin,
                   1e6 * (woke - due), newest, 1e3 * age, damp ? "damp" : "policy", 1e6 * taken);
    // Done when the next tick was due already. One pause happens, and the first second warms up.
    const double done = now(), behind = done - due - contract.control_dt;
    const bool skips = behind > contract.control_dt;
    found.overran += behind > 0;
    if (woke - begin > kRecent) {
      overruns.add(done, behind > 0);
      if (skips) pauses.add(done, behind);
    }
    // A state that is fine now and then moves no robot: braking counts whether or not it is broken.
    if (braked.total() > kGiveUpAfter)
      lost = "damped for more than one of the last two seconds";
    else if (overruns.size() >= kLeastTicks &&
             overruns.total() > kMostMissed * static_cast<double>(overruns.size()))
      lost = std::to_string(static_cast<int>(overruns.total())) + " of the last " +
             std::to_string(overruns.size()) + " ticks took longer than the control period: " +
             kRemedy;
    else if (pauses.total() - pauses.largest() > kMostMissed * 2 * kRecent)
      lost = "held up again and again, " + milliseconds(pauses.total()) +
             " of the last two seconds: " + kRemedy;
    if (!lost.empty()) break;
    if (skips) due = now();  // go on from here instead of catching up in a burst
  }
  if (log) std::fclose(log);
  std::printf("{\"ticks\": %d, \"seconds\": %.3f, \"control_dt\": %.9g, \"delay_ms\": %.3f,"
              " \"damped\": %d, \"stale\": %d, \"not_finite\": %d, \"overran\": %d, \"lost_states\": %u, \"late_us_p50\": %.1f,"
              " \"late_us_p99\": %.1f, \"step_us_p50\": %.2f, \"step_us_p99\": %.2f}\n",
              found.ticks, now() - begin, contract.control_dt, 1e3 * robot.delay, found.damped,
              found.stale, found.not_finite, found.overran, found.lost, 1e6 * percentile(found.late, 0.5),
              1e6 * percentile(found.late, 0.99), 1e6 * percentile(found.step, 0.5),
              1e6 * percentile(found.step, 0.99));
  if (!lost.empty()) std::fprintf(stderr, "supple_runner: gave up: %s\n", lost.c_str());
  return lost.empty() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGINT, [](int) { stopped = 1; });
  std::signal(SIGTERM, [](int) { stopped = 1; });
  std::signal(SIGHUP, [](int) { stopped = 1; });
  try {
    return run(parse(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "supple_runner: refused: %s\n", error.what());
    return 2;
  }
}
