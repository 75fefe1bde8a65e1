package shimproto

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// FrameType says what a frame carries. The numbers are part of the protocol.
type FrameType byte

// Frame types.
const (
	FrameHello    FrameType = 1 // JSON Hello
	FrameRequest  FrameType = 2 // JSON Request
	FrameResponse FrameType = 3 // JSON Response
	FrameEvent    FrameType = 4 // JSON Event

	FrameStdin    FrameType = 10 // bytes
	FrameStdinEOF FrameType = 11 // empty
	FrameStdout   FrameType = 12 // bytes
	FrameStderr   FrameType = 13 // bytes
	FrameResize   FrameType = 14 // JSON Size
	FrameExit     FrameType = 15 // JSON Exit
)

const (
	headerSize = 5
	// MaxFrame bounds a frame's payload. A container's specification is the
	// largest thing sent; its environment may hold a few MiB at most.
	MaxFrame = 16 << 20
)

// ErrFrameTooLarge is returned for a length that no peer would send.
var ErrFrameTooLarge = errors.New("frame too large")

// WriteFrame writes one frame with a single Write.
func WriteFrame(w io.Writer, t FrameType, payload []byte) error {
	if len(payload) > MaxFrame {
		return ErrFrameTooLarge
	}
	b := make([]byte, headerSize, headerSize+len(payload))
	b[0] = byte(t)
	binary.BigEndian.PutUint32(b[1:], uint32(len(payload)))
	_, err := w.Write(append(b, payload...))
	return err
}

// WriteJSON writes v as one frame.
func WriteJSON(w io.Writer, t FrameType, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode frame: %w", err)
	}
	return WriteFrame(w, t, b)
}

// ReadFrame reads one frame. The payload lies in buf when it is large enough.
// io.EOF means that the peer ended between frames.
func ReadFrame(r io.Reader, buf []byte) (FrameType, []byte, error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(h[1:])
	if n > MaxFrame {
		return 0, nil, ErrFrameTooLarge
	}
	if int(n) > cap(buf) {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return FrameType(h[0]), buf, nil
}

// ReadJSON reads one frame, which must be of type t, into v.
func ReadJSON(r io.Reader, t FrameType, v any) error {
	got, b, err := ReadFrame(r, nil)
	if err != nil {
		return err
	}
	if got != t {
		return fmt.Errorf("frame of type %d where %d was expected", got, t)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("decode frame of type %d: %w", t, err)
	}
	return nil
}
