"""`calibrate distill`: a small encoder that learns the dense features of a larger network, from unlabelled images.

teachers, cnn_teacher   what is learnt from          pictures   unlabelled images and the views cut from them
student                 the encoder and its heads    losses     token-wise and relational
trainer                 steps, EMA, checkpoints      probe      held-out R2, AUROC of a memory bank
run                     the whole, from settings to the encoder file and its card
"""
