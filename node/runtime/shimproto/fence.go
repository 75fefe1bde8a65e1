package shimproto

import (
	"encoding/json"
	"fmt"
	"os"
)

// Fence makes a shim end its containers when skiff, and with it the node, has had
// no contact with the cluster for too long, even if skiff is dead. An ordinary
// restart of skiff does not touch it: what counts is the file.
type Fence struct {
	File    string `json:"file"`    // of a FenceRecord
	Seconds int64  `json:"seconds"` // how long the containers may run after the last contact
}

// FenceRecord is the last contact, as skiff keeps it for the shims of its node.
type FenceRecord struct {
	Boot    string `json:"boot"`             // boot ID of the kernel that Granted is of
	Always  bool   `json:"always,omitempty"` // nobody else can replace the pods: no limit
	Granted int64  `json:"granted"`          // CLOCK_BOOTTIME in nanoseconds
}

// WriteFence replaces the record at once.
func WriteFence(path string, r FenceRecord) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return WriteFile(path, b)
}

// ReadFence reads the record.
func ReadFence(path string) (FenceRecord, error) {
	var r FenceRecord
	b, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("read %s: %w", path, err)
	}
	return r, nil
}
