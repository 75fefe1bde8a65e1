package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/skiff-sh/skiff/cluster/upgrade/skew"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/durable"
)

// programFile says which skiff used a data directory last.
const programFile = "program.json"

// LastProgram is what a host remembers of the skiff that ran on it, and of the
// cluster's feature level, so that one that does not fit is refused before it
// touches anything.
type LastProgram struct {
	Version      string `json:"version"`
	FeatureLevel int    `json:"featureLevel"`
}

// ReadProgram reads it from a data directory. A host that has none, or a damaged
// one, remembers nothing: what is in the log is looked at later, too.
func ReadProgram(dataDir string) (p LastProgram) {
	b, err := os.ReadFile(filepath.Join(dataDir, programFile))
	if err != nil || durable.Open(b, &p) != nil {
		return LastProgram{}
	}
	return p
}

// CheckProgram says, as an ErrRefusedStart, why this version of skiff must not
// run on a data directory, and which does.
func CheckProgram(dataDir, version string, server bool) error {
	last := ReadProgram(dataDir)
	if last.FeatureLevel > 0 {
		if err := fsm.CheckLevel(last.FeatureLevel); err != nil {
			return refusedStart(fmt.Sprintf("%v (%s ran here last, this is %s)", err, last.Version, version))
		}
	}
	if err := skew.Step(server, last.Version, version); err != nil {
		return refusedStart(err.Error())
	}
	return nil
}

// NoteProgram remembers this program. level 0 leaves the level as it was.
func NoteProgram(dataDir, version string, level int, log *slog.Logger) {
	last := ReadProgram(dataDir)
	next := LastProgram{Version: version, FeatureLevel: max(level, last.FeatureLevel)}
	if next == last {
		return
	}
	b, err := durable.Seal(next)
	if err == nil {
		err = durable.Replace(filepath.Join(dataDir, programFile), b, 0o644)
	}
	if err != nil { // as on a full disk
		log.Error("which version runs here is not remembered", "error", err)
	}
}

// followLevel remembers the feature level of the cluster, and ends a server whose
// program does not know it.
func (s *Server) followLevel(ctx context.Context) error {
	select {
	case <-s.node.Ready(): // before, the state is one from long ago
	case <-ctx.Done():
		return nil
	}
	w := s.state.Watch(fsm.LevelKey, s.state.Revision())
	for {
		level := fsm.LevelOf(s.state.View())
		err := fsm.CheckLevel(level)
		if err == nil || level > fsm.MaxLevel {
			NoteProgram(s.cfg.DataDir, s.cfg.Version, level, s.cfg.Logger)
		}
		if err != nil {
			return refusedStart(fmt.Sprintf("%v (this is %s)", err, s.cfg.Version))
		}
		if _, _, err := w.Next(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			w = s.state.Watch(fsm.LevelKey, s.state.Revision())
		}
	}
}

// awaitUnfit ends a server when another one says that its program does not work
// beside theirs.
func (s *Server) awaitUnfit(ctx context.Context) error {
	select {
	case why := <-s.members.Unfit():
		return refusedStart(why)
	case <-ctx.Done():
		return nil
	}
}
