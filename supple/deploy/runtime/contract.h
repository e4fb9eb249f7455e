// What the runner takes from manifest.json, and the generated policy's proof that it belongs to it.
#pragma once

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "json.h"
#include "policy.h"
#include "sha256.h"

namespace supple {

// An observation that is an action of the policy's own: nobody but the runner has it.
struct LastAction {
  std::size_t observation, action, steps;  // ago
  double factor;                           // of what training saw, in clip and scale below
  double low, high, scale;
  float shown(float taken) const {
    return static_cast<float>(std::min(std::max(factor * taken, low), high) * scale);
  }
};

struct Contract {
  std::vector<std::string> joints;        // the policy's order
  std::vector<std::string> robot_joints;  // the robot's order; the same where nothing else is known
  std::vector<std::size_t> to_robot;      // index in robot_joints of each of joints
  std::vector<std::string> observations;  // the policy's order
  std::vector<std::string> channels;      // the robot's channel for each of them
  std::vector<std::size_t> ages;          // [control steps]
  std::vector<LastAction> last_actions;
  bool clips_actions = false;  // to [-1, 1], before the simulator sees them
  std::string control_mode;
  double control_dt = 0;   // [s]
  double stale_after = 0;  // [s]
  double most_delay = 0;   // of a state on its way [s]
  std::vector<double> damping;              // per policy joint, command per joint speed
  std::vector<double> command_low, command_high;  // per policy joint; infinite: not bounded
  std::string onnx_digest;                         // SHA-256 of policy.onnx
};

inline std::size_t index_of(const std::string& name, const std::vector<std::string>& names) {
  for (std::size_t i = 0; i < names.size(); ++i)
    if (names[i] == name) return i;
  throw std::runtime_error("the robot has no " + name);
}

// Refuses lists that differ, naming the first place. `what` is the kind of name.
inline void require_equal(const std::vector<std::string>& wanted, const std::vector<std::string>& got,
                          const std::string& what, const std::string& where) {
  for (std::size_t i = 0; i < wanted.size() && i < got.size(); ++i)
    if (wanted[i] != got[i])
      throw std::runtime_error(what + " " + std::to_string(i) + " is '" + got[i] + "' " + where +
                               ", expected '" + wanted[i] + "'");
  if (wanted.size() != got.size())
    throw std::runtime_error(std::to_string(got.size()) + " " + what + "s " + where + ", expected " +
                             std::to_string(wanted.size()));
}

// A joint that the policy does not move needs a command of its own, which no manifest names yet.
inline void require_equal_sets(const std::vector<std::string>& joints,
                               const std::vector<std::string>& robot) {
  for (const std::string& name : joints) {
    index_of(name, robot);
    if (std::count(joints.begin(), joints.end(), name) != 1)
      throw std::runtime_error("the manifest lists a joint twice");
  }
  for (const std::string& name : robot)
    if (std::find(joints.begin(), joints.end(), name) == joints.end())
      throw std::runtime_error("the policy does not move the robot's " + name +
                               ": nothing says how to hold it");
  if (joints.size() != robot.size()) throw std::runtime_error("the manifest lists a joint twice");
}

// The manifest holds the SHA-256 of itself with the digits replaced by zeros.
inline void require_signed(std::string text, const std::string& digest) {
  const std::size_t at = text.find(digest);
  if (digest.size() != 64 || at == std::string::npos || sha256(text.replace(at, 64, 64, '0')) != digest)
    throw std::runtime_error("manifest.json was edited after export: export again");
}

// Limits of commands: false where no joint has one, null where this one has none.
inline std::vector<double> bounds(const Json& listed, std::size_t joints, double none) {
  if (listed.kind != Json::kList) return std::vector<double>(joints, none);
  if (listed.list.size() != joints)
    throw std::runtime_error("the manifest's command limits are not one for each joint");
  std::vector<double> found;
  for (const Json& item : listed.list) {
    if (item.known() && item.kind != Json::kNumber)
      throw std::runtime_error("a command limit in the manifest is no number");
    found.push_back(item.known() ? item.number : none);
  }
  return found;
}

// Infinity is a text.
inline double limit(const Json& item) {
  return item.kind == Json::kString ? std::strtod(item.text.c_str(), nullptr) : item.number;
}

inline std::size_t whole(const Json& item, std::size_t below, const std::string& what) {
  if (item.kind != Json::kNumber || !(item.number >= 0 && item.number < static_cast<double>(below)) ||
      item.number != std::floor(item.number))
    throw std::runtime_error("the manifest's last_action has an odd " + what);
  return static_cast<std::size_t>(item.number);
}

// What is null or of another kind is fed by the robot's side, as all other channels.
inline std::vector<LastAction> last_actions(const Json& observation) {
  std::vector<LastAction> found;
  const std::vector<Json>& terms = observation.at("terms").list;
  for (const Json& item : observation.at("last_action").list) {
    LastAction each{};
    each.observation = whole(item.at("observation"), terms.size(), "observation");
    each.action = whole(item.at("action"), SUPPLE_POLICY_ACTIONS, "action");
    each.steps = whole(item.at("steps"), 1000, "number of steps");
    each.factor = item.at("factor").number;
    const Json &term = terms[each.observation], &clip = term.at("clip");
    const bool clipped = clip.kind == Json::kList && clip.list.size() == 2;
    each.low = clipped ? limit(clip.list[0]) : -INFINITY;
    each.high = clipped ? limit(clip.list[1]) : INFINITY;
    each.scale = term.at("scale").number;
    if (each.steps == 0 || !term.at("scale").known() || !clip.known())
      throw std::runtime_error("the manifest does not say how a last_action is shown");
    found.push_back(each);
  }
  return found;
}

inline void require_bounds(const Contract& contract) {
  for (std::size_t i = 0; i < contract.joints.size(); ++i)
    if (!std::isfinite(contract.command_low[i]) || !std::isfinite(contract.command_high[i]))
      throw std::runtime_error("the manifest does not bound the commands of " + contract.joints[i] +
                               ": tell its limits in EnvSpec.deployment and export again, or allow"
                               " it with --unbounded allow");
}

inline Contract read_contract(const std::string& bundle) {
  std::ifstream file(bundle + "/manifest.json");
  if (!file) throw std::runtime_error("no manifest.json in " + bundle);
  std::stringstream text;
  text << file.rdbuf();
  const Json manifest = JsonReader::read(text.str(), "manifest.json");
  if (manifest.at("format").text != "supple-bundle" || manifest.at("version").number != 1)
    throw std::runtime_error("manifest.json is not of format supple-bundle, version 1");
  // Two checkpoints of a run may have one contract: the policy itself has to be the bundle's.
  if (manifest.at("contract_sha256").text != supple_policy_contract ||
      manifest.at("files").at("policy.c").at("sha256").text != SUPPLE_POLICY_SHA256)
    throw std::runtime_error("this runner was built for another bundle: build it again");
  require_signed(text.str(), manifest.at("sha256").text);
  if (SUPPLE_POLICY_DISCRETE)
    throw std::runtime_error("the policy chooses among actions: this runner drives joints");

  const Json& contract = manifest.at("contract");
  const Json &joints = contract.at("joints"), &safety = contract.at("safety");
  Contract found;
  found.joints = joints.at("policy_names").strings();
  if (found.joints.empty()) throw std::runtime_error("the manifest names no joints");
  const Json& robot = joints.at("robot_names");
  found.robot_joints = robot.known() ? robot.strings() : found.joints;
  require_equal_sets(found.joints, found.robot_joints);
  for (const std::string& name : found.joints)
    found.to_robot.push_back(index_of(name, found.robot_joints));
  for (const Json& term : contract.at("observation").at("terms").list) {
    const std::string name = term.at("name").text;
    const auto age = static_cast<std::size_t>(term.at("history").number);  // null: 0
    const std::string mark = age ? "@" + std::to_string(age) : "";
    found.observations.push_back(name);
    found.ages.push_back(age);
    found.channels.push_back(name.substr(0, name.size() - mark.size()));
  }
  found.last_actions = last_actions(contract.at("observation"));
  for (const Json& step : contract.at("action").at("pipeline").list)
    if (step.at("step").text == "clip") found.clips_actions = step.at("low").kind == Json::kList;
  found.control_mode = contract.at("gains").at("control_mode").text;
  if (found.control_mode.empty())
    throw std::runtime_error("the manifest does not know what commands are, positions or torques:"
                             " tell control_mode in EnvSpec.deployment and export again");
  found.control_dt = contract.at("timing").at("control_dt").number;
  if (!(found.control_dt > 0)) throw std::runtime_error("the manifest knows no control_dt");
  found.stale_after = safety.at("stale_after").number;
  const Json& allowed = contract.at("timing").at("allowed_latency");
  found.most_delay = allowed.known() ? std::min(allowed.number, found.stale_after) : found.stale_after;
  found.damping = safety.at("damping").at("gains").numbers();
  if (found.damping.size() != found.joints.size())
    throw std::runtime_error("the manifest knows no damping gains: the robot could not be braked");
  for (const double gain : found.damping)
    if (!(gain > 0))
      throw std::runtime_error("a damping gain in the manifest is not above 0: it would not brake");
  found.command_low = bounds(safety.at("command_low"), found.joints.size(), -INFINITY);
  found.command_high = bounds(safety.at("command_high"), found.joints.size(), INFINITY);
  for (std::size_t i = 0; i < found.joints.size(); ++i)
    if (found.command_low[i] > found.command_high[i])
      throw std::runtime_error("the manifest's command limits of " + found.joints[i] +
                               " are the wrong way round");
  found.onnx_digest = manifest.at("files").at("policy.onnx").at("sha256").text;

  // The names that the policy itself was generated with.
  const std::vector<std::string> actions(
      supple_policy_action_names,
      supple_policy_action_names + sizeof supple_policy_action_names / sizeof(char*));
  const std::vector<std::string> observations(
      supple_policy_observation_names,
      supple_policy_observation_names + SUPPLE_POLICY_OBSERVATIONS);
  require_equal(actions, found.joints, "joint", "in manifest.json");
  require_equal(observations, found.observations, "observation", "in manifest.json");
  return found;
}

}  // namespace supple
