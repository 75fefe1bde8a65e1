// Package podspec has what every kind that carries a PodSpec shares: the
// defaults, the validation with the API's own field paths and wording, the
// warnings, the QoS class and the columns that list containers.
//
// Limits: fields behind feature gates that are off in the release skiff speaks
// are refused by name. What a node cannot run yet is not refused here; the node
// says so in an event.
package podspec
