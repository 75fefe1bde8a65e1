package storage

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/storage"

	"github.com/skiff-sh/skiff/cluster/consensus"
	"github.com/skiff-sh/skiff/fsm"
)

// What upstream answers, word for word: clients compare the reason, people know
// the text.
const (
	watchTooOld      = "The resourceVersion for the provided watch is too old."
	listTooOld       = "The resourceVersion for the provided list is too old."
	continueTooOld   = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter."
	continueAnywayAt = "The provided continue parameter is too old to display a consistent list result. " +
		"You can start a new list without the continue parameter, or use the continue token in this response to " +
		"retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - " +
		"objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list."
)

// logError turns an error of the log into what the API answers. attempt is
// "read" or "write". Only what certainly did not happen invites a retry.
func logError(err error, attempt string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, fsm.ErrInvalid):
		return apierrors.NewRequestEntityTooLargeError(err.Error())
	case errors.Is(err, consensus.ErrUnknownOutcome), errors.Is(err, context.DeadlineExceeded):
		return apierrors.NewTimeoutError(fmt.Sprintf("the %s was not confirmed by the cluster: %v", attempt, err), 0)
	}
	after, message := retryAfter, fmt.Sprintf("the cluster cannot take the %s now: %v", attempt, err)
	switch {
	case errors.Is(err, consensus.ErrBehind): // for a reason of its own
	case errors.Is(err, consensus.ErrNoSpace):
		message = fmt.Sprintf("the disk of the leading server is full, so nothing can be written until there is room; reads go on: %v", err)
	case errors.Is(err, consensus.ErrRemoved):
		after, message = 0, err.Error() // to try again does not help
	}
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status:  metav1.StatusFailure,
		Code:    http.StatusServiceUnavailable,
		Reason:  metav1.StatusReasonServiceUnavailable,
		Message: message,
		Details: &metav1.StatusDetails{RetryAfterSeconds: int32(after)},
	}}
}

// retryAfter is how many seconds a client waits before it tries again.
const retryAfter = 1

// continueExpired is the 410 for a list that cannot be continued at its
// revision. It carries a token that continues at the newest one.
func continueExpired(continueKey, prefix string) error {
	token, err := storage.EncodeContinue(continueKey, prefix, -1)
	if err != nil {
		return apierrors.NewResourceExpired(continueTooOld)
	}
	e := apierrors.NewResourceExpired(continueAnywayAt)
	e.ErrStatus.ListMeta.Continue = token
	return e
}

// watchStatus is what a watch that failed tells its client last.
func watchStatus(err error) *metav1.Status {
	var api apierrors.APIStatus
	if errors.As(err, &api) {
		s := api.Status()
		return &s
	}
	return &metav1.Status{Status: metav1.StatusFailure, Message: err.Error(),
		Code: http.StatusInternalServerError, Reason: metav1.StatusReasonInternalError}
}
