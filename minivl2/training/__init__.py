"""Training the toy: what `train_tiny.py` stands on.

    tokenizer     byte-pair merges from the toy world's sentences
    shown         what each visual token and patch of a drawn tile shows
    sight         the vision tower learns to tell that, before any question
    curriculum    which pictures at which step, as batches
    optimizers    Muon for the matrices inside, AdamW for the rest, and the learning rate over time
    team          several processes that train one model
    shard         and of which each keeps only a part of it
    loop          the steps themselves, saved so that they can be resumed
    evaluation    scores on pictures never trained on
    report        the curves, and a sheet of pictures with questions and answers
"""
